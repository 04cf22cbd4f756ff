"""Canny-F1: does a generated clip have its edges where the real one has them?

Edge maps come from :func:`cosmos_distill.controls.edge.canny` with its evaluation thresholds, the same
function that makes the control. F1 = 2 TP / (2 TP + FP + FN) over the edge pixels of all clips pooled (a
clip without edges then counts as little as it says); no tolerance in position. Where neither has an edge
there is nothing to score.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.controls.edge import canny
from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore


def counts(video: Tensor, real: Tensor) -> Tensor:
    """True positives, false positives and false negatives of each clip, fp64 [B, 3].

    Args:
        video: Generated clips, uint8 [B, 3, F, H, W].
        real: Clips whose edges should be met, same shape.
    """
    counted = torch.zeros(len(video), 3, dtype=torch.int64)
    for of_video, of_real in runs(video, real, device=torch.device("cpu")):  # where OpenCV works
        found, wanted = _edges(of_video), _edges(of_real)
        both = (found & wanted).flatten(1).sum(1)
        counted += torch.stack([both, found.flatten(1).sum(1) - both, wanted.flatten(1).sum(1) - both], 1)
    return counted.double()


def score(counts: Tensor, weights: Tensor | None = None) -> float:
    """F1 of clips with ``counts`` [B, 3], each taken ``weights`` [B] times (once if left out).

    Raises:
        NoScore: nothing has an edge.
    """
    weights = torch.ones(len(counts), dtype=torch.float64) if weights is None else weights.double()
    tp, fp, fn = (weights @ counts).tolist()
    total = 2 * tp + fp + fn
    if not total:
        raise NoScore("no clip has an edge, neither real nor generated")
    return float(2 * tp / total)


def _edges(video: Tensor) -> Tensor:
    frames = video.permute(0, 2, 3, 4, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([canny(clip)[..., 0] > 0 for clip in frames]))


METRIC = Metric(
    title="Canny-F1",
    direction="higher",
    unit="at most 1",
    source="Canny 1986, thresholds 100 and 200; F1 of edge pixels, without tolerance",
    reads=lambda view: counts(view.video, view.real.video),
    pool=score,
    paired=True,
)
