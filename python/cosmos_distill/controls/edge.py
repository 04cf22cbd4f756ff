"""Canny edges, 255 on an edge and 0 elsewhere, replicated to three channels as the official pipeline does."""

from __future__ import annotations

import numpy as np

from cosmos_distill.config import Strength
from cosmos_distill.controls import Computed, Control, Uniform, check_frames, integer
from cosmos_distill.data.opencv import opencv

Thresholds = tuple[int, int]
"""Canny's lower and upper one."""
CANNY: dict[Strength, Thresholds] = {
    "none": (20, 50), "very_low": (20, 50), "low": (50, 100), "medium": (100, 200), "high": (200, 300),
    "very_high": (300, 400),
}  # fmt: skip
CANNY_MEDIUM = CANNY["medium"]


def canny(frames: np.ndarray, lower: int = CANNY_MEDIUM[0], upper: int = CANNY_MEDIUM[1]) -> np.ndarray:
    """Canny edges of each frame, 255 on an edge and 0 elsewhere.

    The RGB frame goes to OpenCV as it is: its gradient is then that of the strongest channel, as in
    the official pipeline.
    """
    check_frames(frames)
    cv2 = opencv()
    edges = np.stack([cv2.Canny(np.ascontiguousarray(frame), lower, upper) for frame in frames])
    return np.repeat(edges[..., None], 3, axis=-1)


def draw(uniform: Uniform) -> Thresholds:
    """Training thresholds from two numbers in [0, 1).

    lower is uniform over the integers in [20, 100), upper = min(255, lower + uniform integer in [50, 150)).
    """
    lower = integer(uniform[0], 20, 99)
    return lower, min(255, lower + integer(uniform[1], 50, 149))


CONTROL = Control(
    computed=Computed(
        map=lambda frames, thresholds: canny(frames, *thresholds),
        draw=draw,
        preset=lambda strength, factor: CANNY[strength],
    )
)
