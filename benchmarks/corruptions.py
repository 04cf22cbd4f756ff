"""What may be wrong with generated clips, made from real ones: what each measure sees is known then.

Every corruption takes windows of real frames, uint8 [N, 3, 2 F - 1, H, W], and a strength, and returns
clips of F frames, uint8 [N, 3, F, H, W]. The clean clip of a window is every other frame (:func:`clean`),
so that there are real frames in between for slower motion. The same windows give the same clips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.data.opencv import opencv

TILE = 8
"""Pixels along the side of a tile that is moved."""
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Corruption:
    """One thing that may be wrong, at two strengths."""

    name: str
    apply: Callable[[Tensor, float], Tensor]
    strengths: tuple[float, float]
    """Weak, strong."""
    says: str
    """How a strength reads, for str.format."""
    measure: str
    """Name of the metric that must tell both strengths from clean clips and put them in order."""


def clean(windows: Tensor) -> Tensor:
    """The clips that windows hold."""
    return windows[:, :, ::2]


def _random(*shape: int, seed: int = 0) -> Tensor:
    # numpy promises the same Philox stream everywhere; torch does not promise it for its generators.
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape)).float()


def _order(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(count))


def _frames(change: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """``change`` fp32 frames [N * F, 3, H, W] of the clean clips."""
    video = clean(windows)
    found = change(video.transpose(1, 2).flatten(0, 1).float())
    found = found.round().clamp(0, 255).to(torch.uint8)
    return found.unflatten(0, (len(video), -1)).transpose(1, 2)


def _blur(frames: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).repeat(3, 1)
    x = F.pad(frames, (radius, radius, radius, radius), mode="reflect")
    x = F.conv2d(x, taps[:, None, None, :], groups=3)
    return F.conv2d(x, taps[:, None, :, None], groups=3)


def blur(windows: Tensor, sigma: float) -> Tensor:
    """Gaussian blur."""
    return _frames(lambda x: _blur(x, sigma), windows)


def _sharpness(x: Tensor) -> float:
    across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    return float(across.square().mean() + down.square().mean())


def resharpened(windows: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, then an unsharp mask that gives all clips together their real gradient energy back."""

    def change(x: Tensor) -> Tensor:
        soft = _blur(x, sigma)
        detail, wanted = soft - _blur(soft, 1.0), _sharpness(x)
        low, high = 0.0, 64.0
        for _ in range(24):
            middle = (low + high) / 2
            short = _sharpness((soft + middle * detail).clamp(0, 255)) < wanted
            low, high = (middle, high) if short else (low, middle)
        return soft + low * detail

    return _frames(change, windows)


def noise(windows: Tensor, deviation: float) -> Tensor:
    """Gaussian noise of each pixel and colour."""
    return _frames(lambda x: x + deviation * _random(*x.shape), windows)


def jpeg(windows: Tensor, quality: float) -> Tensor:
    """Each frame through a JPEG file."""
    cv2 = opencv()

    def through(frame: np.ndarray) -> np.ndarray:
        written = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
        return cv2.imdecode(written, cv2.IMREAD_COLOR)[..., ::-1].copy()

    def change(x: Tensor) -> Tensor:
        frames = x.permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return torch.from_numpy(np.stack([through(f) for f in frames])).permute(0, 3, 1, 2).float()

    return _frames(change, windows)


def moved_tiles(windows: Tensor, share: float) -> Tensor:
    """Tiles of each clip change places, the same way in all its frames: local statistics and motion stay."""
    video = clean(windows)
    rows, columns = video.shape[3] // TILE, video.shape[4] // TILE
    whole = video[..., : rows * TILE, : columns * TILE]
    tiles = whole.unflatten(4, (columns, TILE)).unflatten(3, (rows, TILE)).permute(0, 3, 5, 1, 2, 4, 6)
    tiles = tiles.flatten(1, 2).clone()  # [N, tiles, 3, F, TILE, TILE]
    count = max(2, round(share * tiles.shape[1]))
    for n, clip in enumerate(tiles):
        some = _order(tiles.shape[1], seed=n)[:count]
        clip[some] = clip[some.roll(1)]
    back = tiles.unflatten(1, (rows, columns)).permute(0, 3, 4, 1, 5, 2, 6)
    found = video.clone()
    found[..., : rows * TILE, : columns * TILE] = back.flatten(5).flatten(3, 4)
    return found


def warp(windows: Tensor, pixels: float) -> Tensor:
    """A smooth random displacement of each clip, of so many pixels on average, the same in all its frames."""
    video = clean(windows)
    height, width = video.shape[-2:]
    field = F.interpolate(_random(len(video), 2, 4, 6), (height, width), mode="bicubic", align_corners=True)
    field = field * pixels / field.square().sum(1, keepdim=True).mean().sqrt()
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)])
    grid = torch.stack([x, y], -1) + field.permute(0, 2, 3, 1) * scale
    found = F.grid_sample(
        video.flatten(1, 2).float(), grid, mode="bicubic", padding_mode="reflection", align_corners=True
    )
    return found.round().clamp(0, 255).to(torch.uint8).unflatten(1, (3, -1))


def saturation(windows: Tensor, factor: float) -> Tensor:
    """Colours farther from grey."""

    def change(x: Tensor) -> Tensor:
        grey = (x * torch.tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        return grey + factor * (x - grey)

    return _frames(change, windows)


def tint(windows: Tensor, share: float) -> Tensor:
    """Red gains, blue loses."""
    return _frames(lambda x: x * torch.tensor([1 + share, 1, 1 - share]).view(3, 1, 1), windows)


def frozen(windows: Tensor, share: float) -> Tensor:
    """Of the steps from frame to frame the last ones stand still."""
    video = clean(windows)
    last = video.shape[2] - 1
    return video[:, :, torch.arange(last + 1).clamp(max=round((1 - share) * last))]


def slow(windows: Tensor, speed: float) -> Tensor:
    """Real frames at the nearest times of slower motion."""
    frames = clean(windows).shape[2]
    return windows[:, :, (2 * speed * torch.arange(frames)).round().long()]


def shuffled(windows: Tensor, share: float) -> Tensor:
    """So large a share of the pairs of neighbouring frames change places."""
    video = clean(windows)
    index = torch.arange(video.shape[2])
    pairs = (video.shape[2] - 1) // 2
    for pair in range(max(1, round(share * pairs))):
        index[1 + 2 * pair], index[2 + 2 * pair] = 2 + 2 * pair, 1 + 2 * pair
    return video[:, :, index]


def collapsed(windows: Tensor, share: float) -> Tensor:
    """Only so large a share of the clips is ever shown, each for many conditions."""
    video = clean(windows)
    count = max(1, round(share * len(video)))
    order = _order(len(video))
    return video[order[:count]][_order(len(video), seed=1) % count]


CORRUPTIONS = (
    Corruption("blur", blur, (0.6, 1.2), "sigma {:g} pixels", "mmd"),
    Corruption("blur, sharpened again", resharpened, (0.8, 1.6), "sigma {:g} pixels", "mmd"),
    Corruption("noise", noise, (5, 10), "deviation {:g} of 255", "mmd"),
    Corruption("JPEG", jpeg, (60, 30), "quality {:g}", "mmd"),
    Corruption("moved tiles", moved_tiles, (0.25, 1), "{:.0%} of the 8 x 8 tiles", "mmd"),
    Corruption("warp", warp, (1, 2), "{:g} pixels", "mmd"),
    Corruption("saturation", saturation, (1.25, 1.6), "x {:g}", "paired"),
    Corruption("tint", tint, (0.1, 0.2), "{:.0%}", "mmd"),
    Corruption("frozen", frozen, (0.5, 1), "{:.0%} of the steps", "motion"),
    Corruption("slow", slow, (0.75, 0.5), "x {:g}", "motion"),
    Corruption("shuffled frames", shuffled, (0.25, 1), "{:.0%} of the pairs", "motion_correlation"),
    Corruption("mode collapse", collapsed, (0.25, 0.0625), "{:.2%} of the clips", "recall"),
)
