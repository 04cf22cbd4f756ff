"""Motion energy: do generated clips move as much as real ones?

A still clip has none, a flickering one too much. The energy of a clip is the mean squared difference of
consecutive frames, pixels scaled to [-1, 1]; the score is the mean over generated clips divided by the mean
over the real ones: 1 is right. Where no real clip moves there is no such ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore


def energies(video: Tensor, real: Tensor) -> Tensor:
    """Energy of each clip and of its real counterpart, fp64 [B, 2]; both uint8 [B, 3, F, H, W], F >= 2.

    Raises:
        NoScore: a single frame.
    """
    if min(video.shape[2], real.shape[2]) < 2:
        raise NoScore("motion needs clips of 2 frames or more")
    return torch.stack([_energy(video), _energy(real)], dim=1)


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


def _energy(video: Tensor) -> Tensor:
    x = video.cpu().double() / 127.5
    return (x[:, :, 1:] - x[:, :, :-1]).square().flatten(1).mean(1)


METRIC = Metric(
    title="motion",
    direction="one",
    unit="1 is real",
    source="mean squared frame difference over that of the real clips",
    reads=lambda view: energies(view.video, view.real.video),
    pool=score,
    paired=True,
)
