"""A clip at a lower resolution, enlarged again: what a network that upscales is given.

A small clip that is to be upscaled is itself the control (``sample --control-video``), which is enlarged to
the student's size; from a clip at that size the control is computed.
"""

from __future__ import annotations

import numpy as np

from cosmos_distill.config import Strength
from cosmos_distill.controls import Computed, Control, Uniform, check_frames
from cosmos_distill.controls.vis import resized

SHARES = ((0.3, 1 / 6), (0.8, 1 / 3), (1.0, 0.5))
"""In training, clips are reduced to 1/6 of their size in 30 % of all samples, to 1/3 in 50 % and to 1/2 in
20 %: bounds of a number in [0, 1), and the scale below each."""
SCALE: dict[Strength, float] = {
    "none": 1.0, "very_low": 0.5, "low": 0.5, "medium": 1 / 3, "high": 1 / 6, "very_high": 1 / 6,
}  # fmt: skip


def upscaled(frames: np.ndarray, scale: float) -> np.ndarray:
    """Frames, RGB uint8 [F, H, W, 3], reduced by ``scale`` (bicubic, antialiased) and enlarged again
    (bilinear)."""
    check_frames(frames)
    size = list(frames.shape[1:3])
    small = [max(1, int(side * scale)) for side in size]
    return np.stack([resized(resized(np.ascontiguousarray(f), small), size, "bilinear") for f in frames])


def draw(uniform: Uniform) -> float:
    """The scale of one clip in training, from one number in [0, 1)."""
    return next(scale for bound, scale in SHARES if uniform[0] < bound)


CONTROL = Control(computed=Computed(map=upscaled, draw=draw, preset=lambda strength, factor: SCALE[strength]))
