"""A decoded frame as a player shows it: cropped, with square pixels, turned, in RGB, on black.

Interlaced pictures stay as they are stored, both fields in one frame.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np

from cosmos_distill.data.boxes import Crop
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opencv import opencv
from cosmos_distill.members import File

MAX_PIXELS = 2**26
"""Of a frame, stored or shown: 8192 x 8192. What claims more is refused before memory is taken for it."""

# Numbers of ITU-T H.273, which FFmpeg's enumerations follow.
HDR = {16: "PQ", 18: "HLG"}
_NOT_DISPLAYED = {8: "linear", 9: "logarithmic", 10: "logarithmic"}
_BT709, _UNSPECIFIED, _BT601 = 1, 2, 5
# colour matrix of a frame -> swscale's number for it
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_UNKNOWN_MATRICES = {0, 2, 3}
_FULL_RANGE = 2
_DOLBY_VISION = ("DOVI_METADATA", "DOVI_RPU_BUFFER")


class Display:
    """Turns the frames of one stream into what is shown.

    Its methods raise DataError, naming file and reason, for frames that cannot be shown.
    """

    def __init__(self, path: File, pixel_aspect: Fraction | None, crop: Crop) -> None:
        self._path, self._crop = path, crop
        self._aspect = Fraction(pixel_aspect or 1)
        self._size: tuple[int, int] | None = None

    def size(self, frame: Any) -> tuple[int, int]:
        """(height, width) as shown; the same for every frame of a stream, or it is refused."""
        width, height = _square_pixels(*self._cropped(frame), self._aspect)
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{self._path}: {width} x {height} pixels are more than the {MAX_PIXELS} of a frame"
            )
        shown = (width, height) if self._orientation(frame)[0] else (height, width)
        if self._size is None:
            self._size = shown
        elif shown != self._size:
            (h, w), (height, width) = self._size, shown
            raise DataError(
                f"{self._path}: its frames change from {w} x {h} to {width} x {height} pixels; cut it there"
            )
        return shown

    def check(self, frame: Any) -> tuple[int, int]:
        """:meth:`size` of a frame that :meth:`rgb` can show."""
        self._matrix(frame)
        return self.size(frame)

    def rgb(self, frame: Any) -> np.ndarray:
        """The frame as RGB uint8 [H, W, 3]."""
        self.size(frame)
        image = self._convert(frame)
        left, top, right, bottom = self._crop
        if any(self._crop):
            image = image[top : image.shape[0] - bottom, left : image.shape[1] - right]
        size = _square_pixels(image.shape[1], image.shape[0], self._aspect)
        if size != (image.shape[1], image.shape[0]):
            cv2 = opencv()
            image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_CUBIC)
        transpose, flip_rows, flip_columns = self._orientation(frame)
        if transpose:
            image = image.transpose(1, 0, 2)
        return np.ascontiguousarray(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])

    def reduced(self, frame: Any, height: int, width: int) -> np.ndarray:
        """The frame as RGB uint8 [height, width, 3], averaged over areas while its colours are converted: for
        a large picture that is to become a small one :meth:`rgb` would cost more than decoding. It must be
        stored as it is shown: upright, whole, with square pixels and without transparency."""
        image: np.ndarray = frame.reformat(
            width=width, height=height, format="rgb24", interpolation="AREA", **self._colours(frame)
        ).to_ndarray()
        return image

    def small(self, frame: Any, height: int, width: int) -> np.ndarray:
        """The frame as shown, reduced to RGB uint8 [height, width, 3] by averaging areas."""
        stored = not _is_transparent(frame) and not any(self._crop) and self._aspect == 1
        if stored and not any(self._orientation(frame)):
            self.size(frame)
            return self.reduced(frame, height, width)
        cv2 = opencv()
        image: np.ndarray = cv2.resize(self.rgb(frame), (width, height), interpolation=cv2.INTER_AREA)
        return image

    def _colours(self, frame: Any) -> dict[str, Any]:
        """swscale's arguments for the frame's colours."""
        return {
            "src_colorspace": self._matrix(frame),
            "src_color_range": frame.color_range if frame.color_range in (1, _FULL_RANGE) else None,
            "dst_color_range": _FULL_RANGE,
        }

    def _cropped(self, frame: Any) -> tuple[int, int]:
        left, top, right, bottom = self._crop
        return frame.width - left - right, frame.height - top - bottom

    def _convert(self, frame: Any) -> np.ndarray:
        transparent = _is_transparent(frame)
        image: np.ndarray = frame.reformat(
            format="rgba" if transparent else "rgb24", **self._colours(frame)
        ).to_ndarray()
        return on_black(image) if transparent else image

    def _matrix(self, frame: Any) -> int:
        """swscale's number of the frame's colour matrix; where the file names none, that which players take:
        BT.709 for high definition and BT.601 below."""
        transfer = int(frame.color_trc)
        if transfer in HDR or (transfer == _UNSPECIFIED and _side_data(frame, *_DOLBY_VISION)):
            kind = HDR.get(transfer, "Dolby Vision")
            raise DataError(
                f"{self._path}: its pictures are HDR ({kind}), which is not tone-mapped here: make it BT.709 "
                "first (ffmpeg -vf zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709:p=bt709)"
            )
        if transfer in _NOT_DISPLAYED:
            raise DataError(
                f"{self._path}: its light is stored {_NOT_DISPLAYED[transfer]}, made for editing, not for "
                "display: convert it to BT.709 first"
            )
        matrix = int(frame.colorspace)
        if matrix in _MATRICES:
            return _MATRICES[matrix]
        if matrix in _UNKNOWN_MATRICES or frame.format.is_rgb:
            return _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
        raise DataError(
            f"{self._path}: colour matrix {matrix} of H.273 is not known here: convert it to BT.709 first"
        )

    def _orientation(self, frame: Any) -> tuple[bool, bool, bool]:
        """Whether to exchange rows and columns, and then to reverse rows, and columns."""
        a, b, c, d = _display_matrix(frame)
        along, across = max(abs(a), abs(d)), max(abs(b), abs(c))
        if not along and not across:  # what says nothing turns nothing
            return False, False, False
        # A point (x, y) of the picture is shown at (a x + c y, b x + d y).
        if min(along, across) > 0.02 * max(along, across):
            raise DataError(
                f"{self._path}: is shown turned by an angle that is no quarter turn: encode it upright"
            )
        return (True, b < 0, c < 0) if across > along else (False, d < 0, a < 0)


def on_black(image: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4] laid on black: RGB uint8 [H, W, 3]."""
    alpha = image[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(image[..., :3])
    return ((image[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _is_transparent(frame: Any) -> bool:
    return bool(frame.format.has_palette or any(c.is_alpha for c in frame.format.components))


def _square_pixels(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height with square pixels: the shorter side grows, so that nothing is lost."""
    if aspect > 1:
        return max(1, round(width * aspect)), height
    return width, max(1, round(height / aspect))


def _display_matrix(frame: Any) -> tuple[float, float, float, float]:
    """The part of FFmpeg's display matrix that turns and mirrors; of a frame that has none, the identity."""
    matrix = _side_data(frame, "DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
        return a, b, c, d
    angle = math.radians(frame.rotation)  # PyAV finds it even beside what it has no name for
    return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)


def _side_data(frame: Any, *names: str) -> Any:
    """What the stream says beside the frame's pixels under one of these names of FFmpeg, or None."""
    try:
        return next((data for data in frame.side_data if data.type.name in names), None)
    except ValueError:  # a kind that this PyAV has no name for hides the others
        return None
