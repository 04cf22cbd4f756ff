"""Control maps computed from pixels. Training, sampling and the metrics call these very functions.

Frames are RGB uint8 [F, H, W, 3] and so are the maps (replicated to three channels, as the official
pipeline does). Depth, segmentation and key points need networks of their own and come from files.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from cosmos_distill.data.errors import DataError

CANNY_MEDIUM = (100, 200)
"""The official "medium" inference preset; evaluation uses it throughout."""
COMPUTED = ("edge", "vis")
"""Controls that need no file."""


def opencv() -> ModuleType:
    """OpenCV, or a DataError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise DataError("edge and vis controls need OpenCV: pip install 'cosmos-distill[video]'") from error
    return cv2


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected RGB uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")


def canny(frames: np.ndarray, lower: int = CANNY_MEDIUM[0], upper: int = CANNY_MEDIUM[1]) -> np.ndarray:
    """Canny edges of each frame, 255 on an edge and 0 elsewhere.

    The RGB frame goes to OpenCV as it is: its gradient is then that of the strongest channel, as in
    the official pipeline.
    """
    _check(frames)
    cv2 = opencv()
    edges = np.stack([cv2.Canny(np.ascontiguousarray(frame), lower, upper) for frame in frames])
    return np.repeat(edges[..., None], 3, axis=-1)


def draw_canny_thresholds(uniform: tuple[float, float]) -> tuple[int, int]:
    """Training thresholds from two numbers in [0, 1).

    lower is uniform over the integers in [20, 100), upper = min(255, lower + uniform integer in [50, 150)).
    """
    lower = 20 + int(uniform[0] * 80)
    return lower, min(255, lower + 50 + int(uniform[1] * 100))


def blur(frames: np.ndarray) -> np.ndarray:
    """Gaussian blur of each frame, sigma = short side / 16 pixels (2 at 32x32, 44 at 704x1280).

    The official blur's kernels are not published. A Gaussian relative to the frame's size keeps layout
    and colour, drops texture, and means the same at every resolution; no separate downscaling step is
    needed, since above this sigma nothing is left that it would remove.
    """
    _check(frames)
    cv2 = opencv()
    sigma = min(frames.shape[1:3]) / 16
    return np.stack(
        [cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for frame in frames]
    )


def thumbnail(frames: np.ndarray, factor: float) -> np.ndarray:
    """Each frame reduced ``factor`` times by area averaging and enlarged again, bilinear: the down- and
    upscaling that the official ``vis`` ends with, at a strength that suits small pictures."""
    _check(frames)
    cv2 = opencv()
    height, width = frames.shape[1:3]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    return np.stack(
        [
            cv2.resize(
                cv2.resize(frame, small, interpolation=cv2.INTER_AREA),
                (width, height),
                interpolation=cv2.INTER_LINEAR,
            )
            for frame in frames
        ]
    )


def compute(
    control: str,
    frames: np.ndarray,
    thresholds: tuple[int, int] = CANNY_MEDIUM,
    factor: float | None = None,
) -> np.ndarray:
    """The map of ``control``; with ``factor``, ``vis`` is :func:`thumbnail`. DataError when it is one that
    only files can give."""
    if control == "edge":
        return canny(frames, *thresholds)
    if control == "vis":
        return blur(frames) if factor is None else thumbnail(frames, factor)
    raise DataError(
        f"the control {control!r} cannot be computed from pixels: give its videos in <root>/{control}/ "
        "(data.source = folder), or choose --control edge or vis"
    )
