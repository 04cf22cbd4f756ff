"""Brightness without colour, BT.709's luma in all three channels: what colouring a film is steered by."""

from __future__ import annotations

import numpy as np

from cosmos_distill.controls import Computed, Control, check_frames

WEIGHTS = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def luma(frames: np.ndarray) -> np.ndarray:
    """Of each pixel, RGB uint8 [F, H, W, 3] as the frames."""
    check_frames(frames)
    grey = np.rint(frames.astype(np.float32) @ WEIGHTS).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


CONTROL = Control(
    computed=Computed(
        map=lambda frames, settings: luma(frames),
        draw=lambda uniform: (),  # it has no settings
        preset=lambda strength, factor: (),
    )
)
