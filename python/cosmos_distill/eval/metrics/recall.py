"""Is each real clip like some generated one? Share of real clips among the neighbours of generated ones.

The measure that sees mode collapse.
"""

from __future__ import annotations

from cosmos_distill.eval import manifolds
from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.metric import Metric

METRIC = Metric(
    title="recall",
    direction="higher",
    unit="share of real clips",
    source="Kynkäänniemi et al. 2019, eq. 2, k = 5; features of the MMD",
    reads=lite0.appearance,
    against=manifolds.recall,
    weights=(lite0.WEIGHTS,),
    centred=True,
    limits=(0.0, 1.0),
)
