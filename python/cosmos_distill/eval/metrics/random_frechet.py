"""Fréchet distance of generated to real clips in a fixed feature space that needs no downloaded network.

Features (:func:`features`, 64 numbers per clip, fixed by the constants below and nothing else):

1. Frames are scaled to [-1, 1] and, above 128 pixels, area-averaged to a short side of 128.
2. Every frame but the first, stacked with 4 x its difference to the frame before: 6 channels.
3. At three scales (full, 1/2, 1/4): a 3x3 random convolution to 32 channels, absolute value (first layer);
   2x average pooling, a 3x3 random convolution to 64 channels, absolute value (second layer). Filters are
   Gaussian, of unit norm; three quarters of them have zero mean, hence see edges and texture, not level.
4. Of each layer and channel: the mean over frames and positions, and the mean over frames of the standard
   deviation over positions: 3 x 2 x (32 + 64) = 576 numbers, times 10, through a fixed random orthonormal
   projection to 64.

Random convolutions measure local structure at several scales and its motion, not meaning: blur, noise,
blocking, wrong contrast and frozen or shuffled frames move the distance, a wrong but plausible object
hardly does. 64 dimensions, because the covariance of d features wants several times d clips.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.eval import gaussians
from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore

DIMENSIONS = 64
_SEED, _LARGEST, _SCALES, _WIDTHS, _GAIN = 20_240_906, 128, 3, (32, 64), 10.0
_SIZE = _SCALES * 2 * sum(_WIDTHS)


@torch.no_grad()
def features(video: Tensor, device: torch.device | None = None) -> Tensor:
    """The 64 features of each clip, fp64 [B, 64]; ``video`` is uint8 [B, 3, F, H, W] with F >= 2. Computed on
    ``device``, or where the clips are.

    Raises:
        NoScore: a single frame, or frames too small for three scales.
    """
    frames, height, width = video.shape[2:]
    if frames < 2 or min(height, width) < 16:
        raise NoScore("its features need clips of 2 frames of 16 x 16 pixels or more")
    total = torch.zeros(len(video), _SIZE, dtype=torch.float64)
    last: list[Tensor] = []  # the frame before a run
    for (part,) in runs(video, device=device):
        x = torch.cat([*last, _small(part)], 2)
        last = [x[:, :, -1:]]
        if x.shape[2] > 1:
            total += _statistics(x).double().cpu() * (x.shape[2] - 1)
    return _GAIN * (total / (frames - 1)) @ _filters()[2]


def _small(video: Tensor) -> Tensor:
    """Scaled in value and, where large, in size, fp32 [B, 3, F, h, w]."""
    x, (height, width) = video.float(), video.shape[-2:]
    if min(height, width) > _LARGEST:
        ratio = _LARGEST / min(height, width)
        size = (round(height * ratio), round(width * ratio))
        x = F.interpolate(x.flatten(1, 2), size=size, mode="area").unflatten(1, x.shape[1:3])
    return x / 127.5 - 1


def _statistics(x: Tensor) -> Tensor:
    """Means over the frames of ``x`` but the first, fp32 [B, 576]."""
    b, frames = len(x), x.shape[2]
    first, second = (bank.to(x.device) for bank in _filters()[:2])
    x = torch.cat([x[:, :, 1:], 4 * (x[:, :, 1:] - x[:, :, :-1])], dim=1)
    x = x.transpose(1, 2).flatten(0, 1)
    found = []
    for _ in range(_SCALES):
        low = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), first).abs()
        high = F.conv2d(F.pad(F.avg_pool2d(low, 2), (1, 1, 1, 1), mode="reflect"), second).abs()
        for layer in (low, high):
            layer = layer.reshape(b, frames - 1, *layer.shape[1:])
            deviations, means = torch.std_mean(layer, (3, 4))
            found += [means.mean(1), deviations.mean(1)]
        x = F.avg_pool2d(x, 2)
    return torch.cat(found, dim=1)


@lru_cache(maxsize=1)
def _filters() -> tuple[Tensor, Tensor, Tensor]:
    # numpy promises the same Philox stream everywhere; torch does not promise it for its generators.
    random = np.random.Generator(np.random.Philox(_SEED))

    def bank(outputs: int, inputs: int) -> Tensor:
        filters = torch.from_numpy(random.standard_normal((outputs, inputs, 3, 3)))
        filters[outputs // 4 :] -= filters[outputs // 4 :].mean((2, 3), keepdim=True)
        return (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).float()

    first, second = bank(_WIDTHS[0], 6), bank(_WIDTHS[1], _WIDTHS[0])
    projection, _ = torch.linalg.qr(torch.from_numpy(random.standard_normal((_SIZE, DIMENSIONS))))
    return first, second, projection


METRIC = Metric(
    title="Fréchet distance, random filters",
    direction="lower",
    unit="squared distance of features",
    source="Dowson and Landau 1982; fixed random convolutions of frames and their differences",
    reads=lambda view: features(view.video, view.device),
    against=gaussians.frechet,
    centred=True,
    replicas=100,
    limits=(0.0, math.inf),
)
