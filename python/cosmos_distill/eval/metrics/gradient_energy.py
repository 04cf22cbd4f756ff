"""Are the clips as sharp as real ones? Energy of the gradients of frames over that of the real clips."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import ratio
from cosmos_distill.eval.views import View


def energies(view: View) -> Tensor:
    """Of each clip and of its real counterpart, fp64 [B, 2]: mean squared difference of neighbouring
    pixels, along rows and along columns, pixels in 0..1."""
    return torch.stack([_energy(view.video), _energy(view.real.video)], 1)


def _energy(video: Tensor) -> Tensor:
    x = video.cpu().float() / 255
    across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    return (across.square().flatten(1).mean(1) + down.square().flatten(1).mean(1)).double()


METRIC = Metric(
    title="gradient energy",
    direction="one",
    unit="1 is real",
    source="mean squared difference of neighbouring pixels over that of the real clips",
    reads=energies,
    pool=ratio,
    paired=True,
)
