"""Do the clips move where and when the real ones do? Correlation of their frame differences.

A frozen clip has none: the correlation is 0 then, and motion says how much is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.views import View


def products(view: View) -> Tensor:
    """Of the frame differences of each clip and its real counterpart, fp64 [B, 3]: mean product, then mean squares.

    Raises:
        ValueError: a single frame.
    """
    if view.video.shape[2] < 2:
        raise ValueError(f"motion needs 2 frames or more, not {list(view.video.shape)}")
    a, b = _differences(view.video), _differences(view.real.video)
    return torch.stack([x.flatten(1).mean(1) for x in (a * b, a * a, b * b)], 1).double()


def _differences(video: Tensor) -> Tensor:
    x = video.cpu().float() / 127.5
    return x[:, :, 1:] - x[:, :, :-1]


def _correlation(values: Tensor, weights: Tensor) -> float:
    both, ours, theirs = (weights @ values).tolist()
    if not ours or not theirs:
        return 1.0 if ours == theirs else 0.0
    return float(both / (ours * theirs) ** 0.5)


METRIC = Metric(
    title="motion correlation",
    direction="higher",
    unit="correlation, at most 1",
    source="uncentred correlation of all frame differences with those of the real clips, pooled",
    reads=products,
    pool=_correlation,
    paired=True,
)
