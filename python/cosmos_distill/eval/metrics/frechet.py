"""Fréchet distance in the features of the MMD.

It compares means and covariances only, and grows as clips get fewer (a covariance of 64 directions wants
several hundred clips): compare sets of one size, with the floor beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cosmos_distill.eval import gaussians
from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.kernels import Space
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.statistics import Sample, Statistic


def _against(reference: Sample) -> Callable[[Sample], Statistic]:
    return gaussians.frechet(reference, Space.of(reference.values))


METRIC = Metric(
    title="Fréchet distance",
    direction="lower",
    unit="squared deviations of the reference",
    source="Heusel et al. 2017; features of the MMD instead of Inception's",
    reads=lite0.appearance,
    against=_against,
    weights=(lite0.WEIGHTS,),
    centred=True,
    replicas=100,
    limits=(0.0, math.inf),
)
