"""Is each clip like some real clip? Share of generated clips among the neighbours of real ones."""

from __future__ import annotations

from cosmos_distill.eval import manifolds
from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.metric import Metric

METRIC = Metric(
    title="precision",
    direction="higher",
    unit="share of clips",
    source="Kynkäänniemi et al. 2019, eq. 2, k = 5; features of the MMD",
    reads=lite0.appearance,
    against=manifolds.precision,
    weights=(lite0.WEIGHTS,),
)
