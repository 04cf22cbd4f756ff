"""Blur-SSIM: is a generated clip the real one once detail is blurred away?

Both videos go through the Gaussian of :func:`blur` (the official metric's kernel is not published; the
control ``vis`` is another blur), then SSIM (Wang et al. 2004) per frame and colour with its usual settings:
Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, averaged over positions
where the whole window lies inside the frame.

Frames of a short side below :data:`SAMPLED` pixels are blurred and compared position by position
(:func:`ssim`). In larger ones the blur leaves nothing that a pixel shows and its neighbour does not: they are
compared at positions :func:`_step` apart (:func:`sampled`), where mean and slope of a blurred frame are
products with two small matrices. What the two find differs by less than 0.0005, or 0.0015 where one clip is
the other at half its contrast: there the rounding of blurred frames is reckoned with instead of done.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.controls import check_frames
from cosmos_distill.data.opencv import opencv
from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import mean

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SAMPLED = 320
"""Short side from which on frames are compared at some positions only."""
_MIDDLE = 128.0
"""Taken off before squares are: variances are small differences of them."""


def per_clip(video: Tensor, real: Tensor, device: torch.device | None = None) -> Tensor:
    """Blur-SSIM of each clip, fp64 [B], at most 1.

    Args:
        video: Generated clips, uint8 [B, 3, F, H, W].
        real: Of the same shape.
        device: Where to compute; None: where they are.

    Raises:
        NoScore: frames smaller than the window of the SSIM.
    """
    wide = min(video.shape[-2:]) >= SAMPLED
    found = []
    for v, r in zip(video.split(1), real.split(1), strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for x, y in runs(v, r, device=device):
            of_run = sampled(x[0], y[0]) if wide else ssim(_blurred(x[0]), _blurred(y[0]))
            total += of_run.cpu() * x.shape[2]
        found.append(total / video.shape[2])
    return torch.stack(found)


def blur(frames: np.ndarray) -> np.ndarray:
    """Gaussian blur of each frame, uint8 [F, H, W, 3], sigma = short side / 16 pixels (2 at 32x32, 44 at
    704x1280). It keeps layout and colour, drops texture, and means the same at every resolution."""
    check_frames(frames)
    cv2 = opencv()
    sigma = _sigma(*frames.shape[1:3])
    return np.stack(
        [cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for frame in frames]
    )


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of two stacks of frames [F, C, H, W] with values in 0..255, an fp64 scalar;
    computed in fp32, or fp64 where the frames are.

    Raises:
        NoScore: frames smaller than the window.
    """
    if min(x.shape[-2:]) < WINDOW:
        raise NoScore(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, not {list(x.shape[-2:])}")
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y = (z.to(wide).flatten(0, 1)[:, None] - _MIDDLE for z in (x, y))
    taps = _taps().to(x)
    maps = torch.cat([x, y, x * x, y * y, x * y], 1).flatten(0, 1)[:, None]
    maps = F.conv2d(F.conv2d(maps, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    mx, my, xx, yy, xy = maps.unflatten(0, (-1, 5)).unbind(1)
    values = _similarity(mx + _MIDDLE, my + _MIDDLE, xx - mx * mx, yy - my * my, xy - mx * my)
    return values.mean(dtype=torch.float64)


def sampled(x: Tensor, y: Tensor) -> Tensor:
    """:func:`ssim` of two stacks of frames [3, F, H, W], uint8, after the blur of :func:`blur`, at positions
    on an even grid; an fp64 scalar.

    A blurred frame is a plane inside a window, to the second order: its variance there is the square of its
    slope times that of the window's taps. Rounding to grey levels, which frames of 8 bits went through, adds
    that of a uniform error; in two frames a fraction f of a level apart its covariance is 1 - 6 f (1 - f) of
    it (the Bernoulli polynomial B2), all of it where they are the same.
    """
    height, width = x.shape[-2:]
    sigma = _sigma(height, width)
    step = _step(sigma)
    rows, columns = (_lines(n, sigma, step, x.device) for n in (height, width))
    mx, *slopes_x = _planes(x, rows, columns)
    my, *slopes_y = _planes(y, rows, columns)
    spread = float((_taps() * _offsets().square()).sum())
    vx, vy, cov = (
        spread * (one[0] * other[0] + one[1] * other[1])
        for one, other in ((slopes_x, slopes_x), (slopes_y, slopes_y), (slopes_x, slopes_y))
    )
    rounding = (1 - float(_taps().square().sum()) ** 2) / 12
    apart = (mx - my).remainder(1)
    common = rounding * (1 - 6 * apart * (1 - apart))
    return _similarity(mx, my, vx + rounding, vy + rounding, cov + common).mean(dtype=torch.float64)


def _similarity(mx: Tensor, my: Tensor, vx: Tensor, vy: Tensor, cov: Tensor) -> Tensor:
    """Wang et al. 2004, eq. 13."""
    return (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))


def _offsets() -> Tensor:
    return torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2


def _taps() -> Tensor:
    """Of the window along one axis, fp64 [WINDOW]."""
    taps = torch.exp(-0.5 * (_offsets() / SIGMA) ** 2)
    return taps / taps.sum()


def _sigma(height: int, width: int) -> float:
    return min(height, width) / 16


def _step(sigma: float) -> int:
    """Pixels between two positions that are compared: 4 at a short side of 320, 8 at 704."""
    return int(sigma // 5)


class _Lines(NamedTuple):
    """What makes blurred values and slopes at positions along an axis of means of neighbouring pixels."""

    pool: int
    """Pixels of such a mean."""
    values: Tensor
    """fp32 [positions, means]: the window's mean."""
    slopes: Tensor
    """fp32 [positions, means]: per pixel, by least squares over the window."""


@lru_cache(maxsize=8)
def _lines(length: int, sigma: float, step: int, device: torch.device) -> _Lines:
    """For an axis of ``length`` pixels that is reflected about its outermost ones."""
    inside = length - (WINDOW - 1)
    count = -(-inside // step)
    # Of each of `count` equal parts the pixel in the middle.
    centres = WINDOW // 2 + ((torch.arange(count) + 0.5) * inside / count).long()
    radius = round(6 * sigma + 1) // 2  # OpenCV's for 8 bits
    reach = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (reach / sigma) ** 2).double()
    kernel = kernel / kernel.sum()
    offsets, taps = _offsets(), _taps()
    weights = torch.zeros(2, count, length, dtype=torch.float64)
    slope = taps * offsets / (taps * offsets.square()).sum()
    period = 2 * (length - 1)
    for i, offset in enumerate(offsets.long().tolist()):
        at = (centres[:, None] + offset + reach).remainder(period)
        at = torch.minimum(at, period - at)
        weights[0].scatter_add_(1, at, (taps[i] * kernel).expand(count, -1))
        weights[1].scatter_add_(1, at, (slope[i] * kernel).expand(count, -1))
    pool = max(1, step // 2)
    means = -(-length // pool)
    # A mean stands for its pixels: it weighs what all of them do.
    weights = F.pad(weights, (0, means * pool - length)).unflatten(2, (means, pool)).sum(3)
    values, slopes = weights.float().to(device)
    return _Lines(pool, values, slopes)


def _planes(x: Tensor, rows: _Lines, columns: _Lines) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, slope down and slope across of blurred frames [3, F, H, W] at every position, fp32
    [3, F, down, across]."""
    means = F.avg_pool2d(x.float(), (rows.pool, columns.pool), ceil_mode=True)
    by_row, down = rows.values @ means, rows.slopes @ means
    return by_row @ columns.values.T, down @ columns.values.T, by_row @ columns.slopes.T


def _blurred(clip: Tensor) -> Tensor:
    """[3, F, H, W] -> [F, 3, H, W] on the same device."""
    frames = blur(np.ascontiguousarray(clip.cpu().permute(1, 2, 3, 0).numpy()))
    return torch.from_numpy(frames).permute(0, 3, 1, 2).to(clip.device)


METRIC = Metric(
    title="blur-SSIM",
    direction="higher",
    unit="at most 1",
    source="Wang et al. 2004, eq. 13, of blurred frames",
    reads=lambda view: per_clip(view.video, view.real.video, view.device),
    pool=mean,
    paired=True,
)
