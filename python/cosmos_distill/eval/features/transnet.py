"""TransNet V2's 3-D convolutions (:mod:`cosmos_distill.vision.transnet`): how clips move. The layers that
decide about a boundary are not used."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cosmos_distill.data import packages
from cosmos_distill.eval.chunks import at_once, frames_of
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.views import View
from cosmos_distill.vision.transnet import WEIGHTS, Stacks, scaled

FRAMES = 256
"""Frames at once, of whole clips."""


class TransNet(Stacks):
    """The convolutional part, whose clips are scaled a few frames at a time."""

    def forward(self, video: Tensor) -> list[Tensor]:
        """As of :class:`~cosmos_distill.vision.transnet.Stacks`, on the device of the weights."""
        count = at_once(video[0, :, 0].numel(), video.device)
        x = torch.cat([scaled(part) for part in frames_of(video, count, video.device)])
        return self.of_scaled(x, video.shape[2])


@lru_cache(maxsize=2)
def network(device: torch.device) -> TransNet:
    """The network on ``device``.

    Raises:
        DataError: its weights are not in the cache; the message says how to get them.
    """
    return TransNet(torch.load(packages.path(WEIGHTS), map_location="cpu", weights_only=True)).to(device)


def motion(view: View) -> Tensor:
    """How each clip moves, fp64 [B, 896]: of every channel of the three stacks the mean over frames and
    positions, then the standard deviations over them.

    Raises:
        NoScore: a single frame.
    """
    frames = view.video.shape[2]
    if frames < 2:
        raise NoScore("motion needs clips of 2 frames or more")
    net, found = network(view.device), []
    for part in view.video.split(max(1, FRAMES // frames)):
        stacks = [x.flatten(2) for x in net(part.to(view.device))]
        found.append(torch.cat([x.mean(2) for x in stacks] + [x.std(2) for x in stacks], 1))
    return torch.cat(found).double().cpu()
