"""Are the clips as sharp as real ones? Energy of the gradients of frames over that of the real clips."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import ratio
from cosmos_distill.eval.views import View


def energies(view: View) -> Tensor:
    """Of each clip and of its real counterpart, fp64 [B, 2]: mean squared difference of neighbouring
    pixels, along rows and along columns, pixels in 0..1."""
    return torch.stack([_energy(v.video, view.device) for v in (view, view.real)], 1)


def _energy(video: Tensor, device: torch.device) -> Tensor:
    channels, frames, height, width = video.shape[1:]
    across, down = torch.zeros(2, len(video), dtype=torch.float64)
    for (part,) in runs(video, device=device):
        x = part.float()
        for total, step in ((across, x[..., 1:] - x[..., :-1]), (down, x[..., 1:, :] - x[..., :-1, :])):
            total += step.square().sum((1, 2, 3, 4), dtype=torch.float64).cpu()  # exact: whole numbers
    lines = channels * frames * 255**2
    return across / (lines * height * (width - 1)) + down / (lines * (height - 1) * width)


METRIC = Metric(
    title="gradient energy",
    direction="one",
    unit="1 is real",
    source="mean squared difference of neighbouring pixels over that of the real clips",
    reads=energies,
    pool=ratio,
    paired=True,
)
