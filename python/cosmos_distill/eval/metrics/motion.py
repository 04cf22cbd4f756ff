"""Motion energy: do generated clips move as much as real ones?

A still clip has none, a flickering one too much. The energy of a clip is the mean squared difference of
consecutive frames, pixels scaled to [-1, 1]; the score is the mean over generated clips divided by the mean
over the real ones: 1 is right. Where no real clip moves there is no such ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore


def energies(video: Tensor, real: Tensor, device: torch.device | None = None) -> Tensor:
    """Energy of each clip and of its real counterpart, fp64 [B, 2]; both uint8 [B, 3, F, H, W], F >= 2.
    Computed on ``device``, or where they are.

    Raises:
        NoScore: a single frame.
    """
    if min(video.shape[2], real.shape[2]) < 2:
        raise NoScore("motion needs clips of 2 frames or more")
    return torch.stack([steps(video, device).mean(1), steps(real, device).mean(1)], dim=1)


def score(energies: Tensor, weights: Tensor | None = None) -> float:
    """Energy of clips with ``energies`` [B, 2] over that of the real ones, each clip taken ``weights`` [B]
    times (once if left out).

    Raises:
        NoScore: the real ones stand still.
    """
    weights = torch.ones(len(energies), dtype=torch.float64) if weights is None else weights.double()
    found, wanted = (weights @ energies).tolist()
    if not wanted:
        raise NoScore("no real clip moves")
    return float(found / wanted)


def steps(video: Tensor, device: torch.device | None = None) -> Tensor:
    """Energy of each frame step, fp64 [B, F - 1] on the CPU."""
    found = [
        (x[:, :, 1:] - x[:, :, :-1]).square().sum((1, 3, 4), dtype=torch.float64).cpu()
        for x in (part.float() for (part,) in runs(video, device=device, before=1))
    ]
    # Differences of grey levels and their squares are whole numbers, which fp32 has exactly.
    return torch.cat(found, 1) / (video[:, :, 0].numel() / len(video) * 127.5**2)


METRIC = Metric(
    title="motion",
    direction="one",
    unit="1 is real",
    source="mean squared frame difference over that of the real clips",
    reads=lambda view: energies(view.video, view.real.video, view.device),
    pool=score,
    paired=True,
)
