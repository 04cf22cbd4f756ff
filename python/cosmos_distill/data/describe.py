"""A coarse description of a clip, computed from its pixels: what the film has in place of a caption.

Like the motion and aesthetic scores that video models are conditioned on, it says what a control or a given
frame leaves open, and never which shot a clip is from: every description fits many shots.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from cosmos_distill.data.film_table import DETAIL, LIGHT, MOTION

MOTION_WORDS = ("still", "slow", "quick", "fast")
DETAIL_WORDS = ("smooth", "soft", "fine", "busy")
LIGHT_WORDS = ("dark", "dim", "light", "bright")
COLOUR_WORDS = ("red", "green", "blue")
GREY = 6.0
"""Grey levels that the strongest colour must be above the mean of all to be named."""
WORDS = 4


def measures(frames: np.ndarray) -> tuple[float, float, float]:
    """Motion, detail and light of uint8 [F, H, W, 3], in grey levels.

    Motion is the mean absolute difference of consecutive frames, detail that of neighbouring pixels, light
    the mean of all.
    """
    # The green channel carries most of the luma; a third of the work, and only four levels are told apart.
    green = frames[..., 1].astype(np.int16)
    motion = np.abs(np.diff(green, axis=0)).mean() if len(frames) > 1 else 0.0
    detail = (np.abs(np.diff(green, axis=1)).mean() + np.abs(np.diff(green, axis=2)).mean()) / 2
    return float(motion), float(detail), float(frames.mean())


def describe(frames: np.ndarray) -> str:
    """Four words for uint8 [F, H, W, 3]: quarter of the film in motion, in detail and in light, and the
    colour."""
    found = zip(
        measures(frames), (MOTION, DETAIL, LIGHT), (MOTION_WORDS, DETAIL_WORDS, LIGHT_WORDS), strict=True
    )
    words = [names[bisect_right(quartiles, value)] for value, quartiles, names in found]
    means = frames.mean((0, 1, 2))
    strongest = int(means.argmax())
    return " ".join([*words, COLOUR_WORDS[strongest] if means[strongest] - means.mean() > GREY else "grey"])
