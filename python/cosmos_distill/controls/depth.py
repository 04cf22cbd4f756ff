"""Depth, near to far: by a network that the user gives, or from files.

As the published pipeline draws it: the nearest point of the whole clip is white, the farthest black.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cosmos_distill.controls import Control, Map, Modelled, Settings
from cosmos_distill.vision import depth


def shaded(nearness: np.ndarray) -> np.ndarray:
    """Nearness [F, H, W] of any unit, as a video RGB uint8 [F, H, W, 3], black where a clip has one depth."""
    low, high = float(nearness.min()), float(nearness.max())
    levels = (nearness - low) / (high - low + 1e-8) * 255.0
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


def _load(folder: Path) -> Map:
    look = depth.load(folder)

    def shade(frames: np.ndarray, settings: Settings) -> np.ndarray:
        return shaded(look(frames))

    return shade


CONTROL = Control(modelled=Modelled(wants=depth.WHAT, check=depth.check, load=_load))
