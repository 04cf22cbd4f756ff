"""Control maps computed from pixels, with the numbers of Cosmos-Transfer1's own augmentors.

Frames are RGB uint8 [F, H, W, 3] and so are the maps (edges replicated to three channels, as the official
pipeline does). Training draws the settings of each clip anew; sampling and evaluation use a preset. Depth,
segmentation and key points need networks of their own and come from files.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from cosmos_distill.config import Strength
from cosmos_distill.data.errors import DataError


class Bilateral(NamedTuple):
    """OpenCV's bilateral filter of 8-bit colours, ``passes`` times."""

    diameter: int
    sigma_color: float
    sigma_space: float
    passes: int = 1

    def __call__(self, frame: np.ndarray, scale: float) -> np.ndarray:
        for _ in range(self.passes):
            frame = opencv().bilateralFilter(
                frame, max(1, round(self.diameter * scale)), self.sigma_color, self.sigma_space * scale
            )
        return frame


class Gaussian(NamedTuple):
    """Gaussian blur, cut off where a kernel of ``size`` (the next odd number) ends."""

    size: int
    sigma: float

    def __call__(self, frame: np.ndarray, scale: float) -> np.ndarray:
        size = max(3, round(self.size * scale) | 1)
        return opencv().GaussianBlur(frame, (size, size), self.sigma * scale)


class VisSettings(NamedTuple):
    """How vis blurs a clip; lengths are pixels of frames whose short side is :data:`LINES`."""

    shrink: int
    """The filters work on a frame averaged down by this, and scaled up linearly afterwards."""
    filters: tuple[Bilateral | Gaussian, ...]
    coarsen: int
    """Then the frame is scaled down and up by this, bicubic with antialiasing."""


Thresholds = tuple[int, int]
"""Canny's lower and upper one."""


class Thumbnail(NamedTuple):
    """How vis blurs a clip that is itself no larger than a thumbnail: only by its last step."""

    factor: float
    """By which frames are scaled down and up."""


Settings = Thresholds | VisSettings | Thumbnail

LINES = 704
"""Short side of the frames that the lengths of a :class:`VisSettings` are for. They shrink with smaller
frames, so that a blur means the same at every resolution; larger ones have them as they are, as 960 x 960
officially has."""
CANNY: dict[Strength, Thresholds] = {
    "none": (20, 50), "very_low": (20, 50), "low": (50, 100), "medium": (100, 200), "high": (200, 300),
    "very_high": (300, 400),
}  # fmt: skip
CANNY_MEDIUM = CANNY["medium"]
VIS: dict[Strength, VisSettings] = {
    "none": VisSettings(1, (Bilateral(1, 1, 1),), 1),
    "very_low": VisSettings(1, (Bilateral(15, 100, 50),), 4),
    "low": VisSettings(4, (Bilateral(15, 100, 50),), 4),
    "medium": VisSettings(2, (Bilateral(30, 150, 100),), 10),
    "high": VisSettings(1, (Bilateral(50, 300, 150),), 16),
    "very_high": VisSettings(4, (Bilateral(50, 300, 150),), 16),
}
Uniform = Sequence[float] | np.ndarray
"""Numbers in [0, 1)."""
THUMBNAIL: dict[Strength, float] = {
    "none": 0.8, "very_low": 0.8, "low": 0.8, "medium": 1.0, "high": 1.3, "very_high": 1.6,
}  # fmt: skip
"""Factor of a thumbnail by strength, over that of the medium one."""
COMPUTED = ("edge", "vis")
"""Controls that need no file."""
DRAWS = 9
"""Numbers in [0, 1) that the settings of one clip are drawn from."""


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


def vis(frames: np.ndarray, settings: VisSettings = VIS["medium"]) -> np.ndarray:
    """Frames that keep layout and colour: filtered at a lower resolution, then coarsened, each step rounded
    to 8 bits."""
    _check(frames)
    cv2 = opencv()
    height, width = frames.shape[1:3]
    scale = min(1.0, min(height, width) / LINES)
    shrink = max(1, round(settings.shrink * scale))
    coarse = [max(1, int(side / max(1.0, settings.coarsen * scale))) for side in (height, width)]

    def one(frame: np.ndarray) -> np.ndarray:
        if shrink > 1:
            frame = cv2.resize(frame, (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
        for apply in settings.filters:
            frame = apply(frame, settings.shrink * scale / shrink)
        if shrink > 1:
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        if coarse == [height, width]:
            return frame
        return _bicubic(_bicubic(frame, coarse), [height, width])

    return np.stack([one(np.ascontiguousarray(frame)) for frame in frames])


def _bicubic(frame: np.ndarray, size: list[int]) -> np.ndarray:
    """torchvision's antialiased resizing of an 8-bit image: in fp32, clamped and rounded."""
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)
    return image.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def blur(frames: np.ndarray) -> np.ndarray:
    """Gaussian blur of each frame, sigma = short side / 16 pixels (2 at 32x32, 44 at 704x1280): not a control
    but what blur-SSIM compares under. It keeps layout and colour, drops texture, and means the same at every
    resolution."""
    _check(frames)
    cv2 = opencv()
    sigma = min(frames.shape[1:3]) / 16
    return np.stack(
        [cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for frame in frames]
    )


def thumbnail(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames scaled down and up by ``factor``, as the last step of :func:`vis` does it, whatever their
    size."""
    _check(frames)
    size = list(frames.shape[1:3])
    small = [max(1, int(side / factor)) for side in size]
    return np.stack([_bicubic(_bicubic(np.ascontiguousarray(frame), small), size) for frame in frames])


def draw_canny_thresholds(uniform: Uniform) -> Thresholds:
    """Training thresholds from two numbers in [0, 1).

    lower is uniform over the integers in [20, 100), upper = min(255, lower + uniform integer in [50, 150)).
    """
    lower = _integer(uniform[0], 20, 99)
    return lower, min(255, lower + _integer(uniform[1], 50, 149))


def draw_vis(uniform: Uniform) -> VisSettings:
    """Training settings from :data:`DRAWS` numbers in [0, 1): bilateral in 50 % of all clips, Gaussian in
    30 %, one after the other in 20 %, with integers that are uniform over the official ranges and a uniform
    sigma."""
    kind, shrink, size, sigma, diameter, color, space, passes, coarsen = uniform
    bilateral = Bilateral(
        _integer(diameter, 15, 49),
        _integer(color, 100, 299),
        _integer(space, 50, 149),
        _integer(passes, 1, 3),
    )
    gaussian = Gaussian(_integer(size, 21, 29), 10.5 + 4.0 * float(sigma))
    filters = (bilateral,) if kind < 0.5 else (gaussian,) if kind < 0.8 else (bilateral, gaussian)
    return VisSettings(_integer(shrink, 1, 4), filters, _integer(coarsen, 4, 17))


def _integer(uniform: float, first: int, last: int) -> int:
    return first + int(uniform * (last - first + 1))


def draw(control: str | None, uniform: Uniform) -> Settings | None:
    """Training settings of a control from :data:`DRAWS` numbers in [0, 1); None for one that has none."""
    if control == "edge":
        return draw_canny_thresholds(uniform)
    return draw_vis(uniform) if control == "vis" else None


def preset(
    control: str | None, strength: Strength = "medium", factor: float | None = None
) -> Settings | None:
    """Settings of a control at inference; None for one that has none. Evaluation has the medium ones.

    With ``factor`` vis is a thumbnail, by that where it is medium and by a fixed share of it elsewhere.
    """
    if control == "vis" and factor is not None:
        return Thumbnail(factor * THUMBNAIL[strength])
    if control == "edge":
        return CANNY[strength]
    return VIS[strength] if control == "vis" else None


def compute(control: str, frames: np.ndarray, settings: Settings | None = None) -> np.ndarray:
    """The map of ``control`` with ``settings`` (None: the medium preset).

    Raises:
        DataError: a control that only files can give.
    """
    settings = settings or preset(control)
    if isinstance(settings, VisSettings):
        return vis(frames, settings)
    if isinstance(settings, Thumbnail):
        return thumbnail(frames, settings.factor)
    if settings is not None:
        return canny(frames, *settings)
    raise DataError(
        f"the control {control!r} cannot be computed from pixels: give its videos in <root>/{control}/ "
        "(data.source = folder), or choose --control edge or vis"
    )
