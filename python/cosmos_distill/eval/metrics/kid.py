"""Kernel distance: as the MMD, with the kernel of the Kernel Inception Distance, which has no width to
choose."""

from __future__ import annotations

from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.kernels import cubic, discrepancy
from cosmos_distill.eval.metric import Metric

METRIC = Metric(
    title="KID",
    direction="lower",
    unit="squared MMD",
    source="Bińkowski et al. 2018, cubic kernel; features of the MMD instead of Inception's",
    reads=lite0.appearance,
    against=lambda reference: discrepancy(reference, cubic),
    weights=(lite0.WEIGHTS,),
)
