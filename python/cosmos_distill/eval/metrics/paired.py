"""Is each clip the one that its control came from? Distance in features, position by position, as LPIPS
without learnt weights. Blur is cheap here: read the gradient energy beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.features import lite0
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import mean
from cosmos_distill.eval.views import View


def distances(view: View) -> Tensor:
    """Of each clip to its real counterpart, fp64 [B]: squared differences of the channels' directions, mean
    over positions and frames, then over stages 1, 2 and 4; 0 is the same clip, 200 no likeness
    anywhere."""
    pairs = zip(view.of(lite0.maps).directions, view.real.of(lite0.maps).directions, strict=True)
    clips = len(view.video)
    stages = [(a - b).square().sum(1).mean((1, 2)).unflatten(0, (clips, -1)).mean(1) for a, b in pairs]
    return 100 * torch.stack(stages).mean(0).double().cpu()


METRIC = Metric(
    title="paired distance",
    direction="lower",
    unit="x 100",
    source="Zhang et al. 2018, eq. 1, all weights 1; EfficientNet-Lite0 stages 1, 2 and 4",
    reads=distances,
    pool=mean,
    paired=True,
    weights=(lite0.WEIGHTS,),
)
