"""Blur-SSIM: is a generated clip the real one once detail is blurred away?

Both videos go through the Gaussian of :func:`blur` (the official metric's kernel is not published; the
control ``vis`` is another blur), then SSIM (Wang et al. 2004) per frame and colour with its usual settings:
Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, averaged over positions
where the whole window lies inside the frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.controls import check_frames
from cosmos_distill.data.opencv import opencv
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import mean

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def per_clip(video: Tensor, real: Tensor) -> Tensor:
    """Blur-SSIM of each clip, fp64 [B], at most 1. Both are uint8 [B, 3, F, H, W]."""
    return torch.stack([ssim(_blurred(v), _blurred(r)) for v, r in zip(video, real, strict=True)])


def blur(frames: np.ndarray) -> np.ndarray:
    """Gaussian blur of each frame, uint8 [F, H, W, 3], sigma = short side / 16 pixels (2 at 32x32, 44 at
    704x1280). It keeps layout and colour, drops texture, and means the same at every resolution."""
    check_frames(frames)
    cv2 = opencv()
    sigma = min(frames.shape[1:3]) / 16
    return np.stack(
        [cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for frame in frames]
    )


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of two stacks of frames [F, C, H, W] with values in 0..255, fp64.

    Raises:
        NoScore: frames smaller than the window.
    """
    if min(x.shape[-2:]) < WINDOW:
        raise NoScore(f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, not {list(x.shape[-2:])}")
    x, y = (z.double().flatten(0, 1)[:, None] for z in (x, y))
    taps = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / SIGMA) ** 2)
    taps = taps / taps.sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return values.mean()


def _blurred(clip: Tensor) -> Tensor:
    frames = blur(np.ascontiguousarray(clip.cpu().permute(1, 2, 3, 0).numpy()))
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


METRIC = Metric(
    title="blur-SSIM",
    direction="higher",
    unit="at most 1",
    source="Wang et al. 2004, eq. 13, of blurred frames",
    reads=lambda view: per_clip(view.video, view.real.video),
    pool=mean,
    paired=True,
)
