"""Depth of frames by a model of transformers for depth estimation: Depth Anything, DPT, ZoeDepth, ..."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cosmos_distill import vision

WHAT = "a model for depth estimation (Depth Anything, DPT)"
ARCHITECTURES = ("ForDepthEstimation",)
_METRIC = ("zoedepth", "glpn", "depth_pro", "prompt_depth_anything")
"""Models whose output is a distance; that of the others grows towards the camera."""
_NEAREST = 1e-3
"""Metres: least distance, whose inverse is taken."""


def check(folder: Path) -> None:
    """Raises DataError unless the folder holds such a model."""
    vision.check(folder, WHAT, ARCHITECTURES)


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function from frames, RGB uint8 [F, H, W, 3], to nearness, fp32 [F, H, W], in a unit of its own.

    Raises:
        DataError: the folder holds no such model.
    """
    check(folder)
    said = vision.configuration(folder)
    metric = said.get("model_type") in _METRIC or said.get("depth_estimation_type") == "metric"
    with vision.loading(folder, WHAT) as transformers:
        run = vision.pipeline(transformers, "depth-estimation", "AutoModelForDepthEstimation", folder)

    def nearness(frames: np.ndarray) -> np.ndarray:
        found = run(vision.pictures(frames), batch_size=vision.BATCH)
        depth = np.stack([one["predicted_depth"].float().cpu().numpy().squeeze() for one in found])
        return 1 / np.maximum(depth, _NEAREST) if metric else depth

    return nearness
