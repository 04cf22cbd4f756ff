"""Do the clips move where and when the real ones do? Correlation of their frame differences.

A frozen clip has none: the correlation is 0 then, and motion says how much is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import once
from cosmos_distill.eval.views import View


def products(view: View) -> Tensor:
    """Of the frame differences of each clip and its real counterpart, fp64 [B, 3]: mean product, then mean
    squares.

    Raises:
        NoScore: a single frame.
    """
    if view.video.shape[2] < 2:
        raise NoScore("motion needs clips of 2 frames or more")
    total = torch.zeros(len(view.video), 3, dtype=torch.float64)
    for video, real in runs(view.video, view.real.video, device=view.device, before=1):
        a, b = _differences(video), _differences(real)
        # Whole numbers, which fp32 has exactly.
        sums = [x.sum((1, 2, 3, 4), dtype=torch.float64) for x in (a * b, a * a, b * b)]
        total += torch.stack(sums, 1).cpu()
    return total / (view.video[0, :, 1:].numel() * 127.5**2)


def _differences(video: Tensor) -> Tensor:
    x = video.float()
    return x[:, :, 1:] - x[:, :, :-1]


def _correlation(values: Tensor, weights: Tensor | None = None) -> float:
    both, ours, theirs = (once(weights, values) @ values).tolist()
    if not theirs:
        raise NoScore("no real clip moves")
    return float(both / (ours * theirs) ** 0.5) if ours else 0.0


METRIC = Metric(
    title="motion correlation",
    direction="higher",
    unit="correlation, at most 1",
    source="uncentred correlation of all frame differences with those of the real clips, pooled",
    reads=products,
    pool=_correlation,
    paired=True,
)
