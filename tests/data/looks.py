"""Clips that look as clips should not, and clips that look as they should. RGB uint8 [F, H, W, 3]."""

from __future__ import annotations

import numpy as np

from cosmos_distill.data.opencv import opencv


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth patches with sharp edges, uint8 [height, width, 3]; each seed gives another one."""
    cv2, random = opencv(), np.random.default_rng(seed)
    small = random.integers(30, 226, (5, 7, 3)).astype(np.uint8)
    image = np.ascontiguousarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    for _ in range(12):
        x, y = int(random.integers(width)), int(random.integers(height))
        colour = tuple(int(c) for c in random.integers(20, 236, 3))
        cv2.rectangle(image, (x, y), (x + width // 6, y + height // 6), colour, -1)
    return image


def moving(seed: int, frames: int = 24, step: int = 2) -> np.ndarray:
    """A picture that moves to the left, ``step`` pixels a frame."""
    image = picture(seed)
    return np.stack([np.roll(image, -step * i, axis=1) for i in range(frames)])


def still(seed: int, frames: int = 24) -> np.ndarray:
    return np.stack([picture(seed)] * frames)


def dark(seed: int) -> np.ndarray:
    return (moving(seed) * 0.03).astype(np.uint8)


def blurred(seed: int) -> np.ndarray:
    cv2 = opencv()
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 5) for frame in moving(seed)])


def saturated(seed: int) -> np.ndarray:
    return np.where(moving(seed) > 120, 255, 0).astype(np.uint8)


def boxed(seed: int) -> np.ndarray:
    """Bars of 16 rows above and below."""
    return np.pad(moving(seed), ((0, 0), (16, 16), (0, 0), (0, 0)))


def cut(*seeds: int, frames: int = 12) -> np.ndarray:
    return np.concatenate([moving(seed, frames) for seed in seeds])
