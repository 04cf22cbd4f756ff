"""Do the clips move as much as real ones from each frame to the next?

Motion of every frame step over that of the real clips. A total may hide what a tokenizer or a sampler does to
single steps: half the motion inside the frames of one latent, twice that at its border.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.metrics import motion
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import ratio
from cosmos_distill.eval.statistics import Sample
from cosmos_distill.eval.views import View


def energies(view: View) -> Tensor:
    """Of each frame step of each clip and of its real counterpart, fp64 [B, 2, F - 1]: mean squared
    difference, pixels in -1..1.

    Raises:
        NoScore: a single frame.
    """
    if view.video.shape[2] < 2:
        raise NoScore("motion needs clips of 2 frames or more")
    return torch.stack([motion.steps(v.video, view.device) for v in (view, view.real)], 1)


def steps(values: Tensor, weights: Tensor | None = None) -> list[float]:
    """Ratio of each frame step."""
    return [ratio(values[..., step], weights) for step in range(values.shape[2])]


def _departure(values: Tensor, weights: Tensor | None = None) -> float:
    found = steps(values, weights)
    return sum(abs(step - 1) for step in found) / len(found)


def _detail(sample: Sample) -> list[float]:
    return steps(sample.values)


METRIC = Metric(
    title="motion, departure by step",
    direction="lower",
    unit="mean distance of the ratios from 1",
    source="mean squared frame difference over that of the real clips, step by step",
    reads=energies,
    pool=_departure,
    paired=True,
    detail=_detail,
)
