"""A blurred clip: layout and colour without detail."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from cosmos_distill.config import Strength
from cosmos_distill.controls import Computed, Control, Settings, Uniform, check_frames, integer
from cosmos_distill.data.opencv import opencv
from cosmos_distill.ops.bilateral import bilateral
from cosmos_distill.ops.registry import BackendFallback


class Bilateral(NamedTuple):
    """The bilateral filter of 8-bit colours as OpenCV has it, ``passes`` times.

    It is computed by a kernel of our own, which is several times faster; where nothing was compiled, by
    OpenCV, to within a grey level at values between two.
    """

    diameter: int
    sigma_color: float
    sigma_space: float
    passes: int = 1

    def __call__(self, frame: np.ndarray, scale: float) -> np.ndarray:
        diameter, sigma_space = max(1, round(self.diameter * scale)), self.sigma_space * scale
        for _ in range(self.passes):
            try:
                picture = torch.from_numpy(frame)
                frame = bilateral(picture, max(1, diameter // 2), self.sigma_color, sigma_space).numpy()
            except ImportError as error:
                warnings.warn(
                    f"vis is blurred by OpenCV, more slowly: {error}", BackendFallback, stacklevel=2
                )
                frame = opencv().bilateralFilter(frame, diameter, self.sigma_color, sigma_space)
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


class Thumbnail(NamedTuple):
    """How vis blurs a clip that is itself no larger than a thumbnail: only by its last step."""

    factor: float
    """By which frames are scaled down and up."""


LINES = 704
"""Short side of the frames that the lengths of a :class:`VisSettings` are for. They shrink with smaller
frames, so that a blur means the same at every resolution; larger ones have them as they are, as 960 x 960
officially has."""
VIS: dict[Strength, VisSettings] = {
    "none": VisSettings(1, (Bilateral(1, 1, 1),), 1),
    "very_low": VisSettings(1, (Bilateral(15, 100, 50),), 4),
    "low": VisSettings(4, (Bilateral(15, 100, 50),), 4),
    "medium": VisSettings(2, (Bilateral(30, 150, 100),), 10),
    "high": VisSettings(1, (Bilateral(50, 300, 150),), 16),
    "very_high": VisSettings(4, (Bilateral(50, 300, 150),), 16),
}
THUMBNAIL: dict[Strength, float] = {
    "none": 0.8, "very_low": 0.8, "low": 0.8, "medium": 1.0, "high": 1.3, "very_high": 1.6,
}  # fmt: skip
"""Factor of a thumbnail by strength, over that of the medium one."""


def blur(frames: np.ndarray, settings: VisSettings = VIS["medium"]) -> np.ndarray:
    """Frames that keep layout and colour: filtered at a lower resolution, then coarsened, each step rounded
    to 8 bits."""
    check_frames(frames)
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
        return resized(resized(frame, coarse), [height, width])

    return np.stack([one(np.ascontiguousarray(frame)) for frame in frames])


def resized(
    frame: np.ndarray, size: list[int], mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> np.ndarray:
    """torchvision's antialiased resizing of an 8-bit image [H, W, 3] to (height, width): in fp32, clamped and
    rounded."""
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, size=size, mode=mode, align_corners=False, antialias=True)
    return image.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def thumbnail(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames scaled down and up by ``factor``, as the last step of :func:`blur` does it, whatever their
    size."""
    check_frames(frames)
    size = list(frames.shape[1:3])
    small = [max(1, int(side / factor)) for side in size]
    return np.stack([resized(resized(np.ascontiguousarray(frame), small), size) for frame in frames])


def draw(uniform: Uniform) -> VisSettings:
    """Training settings from :data:`DRAWS` numbers in [0, 1): bilateral in 50 % of all clips, Gaussian in
    30 %, one after the other in 20 %, with integers that are uniform over the official ranges and a uniform
    sigma."""
    kind, shrink, size, sigma, diameter, color, space, passes, coarsen = uniform
    bilateral = Bilateral(
        integer(diameter, 15, 49),
        integer(color, 100, 299),
        integer(space, 50, 149),
        integer(passes, 1, 3),
    )
    gaussian = Gaussian(integer(size, 21, 29), 10.5 + 4.0 * float(sigma))
    filters = (bilateral,) if kind < 0.5 else (gaussian,) if kind < 0.8 else (bilateral, gaussian)
    return VisSettings(integer(shrink, 1, 4), filters, integer(coarsen, 4, 17))


def preset(strength: Strength, factor: float | None) -> VisSettings | Thumbnail:
    """Settings at inference; with ``factor`` a thumbnail, by that where it is medium and by a fixed share of
    it elsewhere."""
    return VIS[strength] if factor is None else Thumbnail(factor * THUMBNAIL[strength])


def _map(frames: np.ndarray, settings: Settings) -> np.ndarray:
    return thumbnail(frames, settings.factor) if isinstance(settings, Thumbnail) else blur(frames, settings)


CONTROL = Control(computed=Computed(map=_map, draw=draw, preset=preset))
