"""How clips look, in a few numbers: what ``cosmos-distill inspect`` shows, and what :class:`~cosmos_distill.
config.Keep` judges clips and a teacher's pairs by.

Everything is measured inside of black bars, on frames that are reduced to :data:`SMALL` pixels (areas are
averaged, so that grain and compression count little), but for sharpness and saturation, which need
:data:`LARGE` ones and are taken of :data:`SAMPLES` frames spread over the clip. A clip of up to :data:`WHOLE`
frames is decoded from its first to its last; a longer one from :data:`SAMPLES` places on, so that an hour
costs as much as ten seconds. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np

from cosmos_distill.data import photos
from cosmos_distill.data.clips import find_cuts
from cosmos_distill.data.container import Opened, opened, shown_frames
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opencv import opencv
from cosmos_distill.data.video import ClipInfo
from cosmos_distill.members import File

SMALL, LARGE = 128, 720
"""Longest side of reduced frames, and shortest of those for sharpness; none is enlarged."""
SAMPLES = 5
WHOLE = 240
"""Frames that are decoded of any clip, apart from those between a key frame and the place that is wanted."""
_LENGTH = WHOLE // SAMPLES
"""Frames of a stretch of a longer one."""
_BLACK, _ENDS = 20, (1, 254)
"""Grey level up to which a bar is black; values from which on, down and up, a channel is at its end."""
_REPEATED = 0.02
"""Grey levels by which a frame differs that was shown twice and encoded in between."""
_FILTER = 11


@dataclass(frozen=True)
class ClipStats:
    """Numbers of one clip. None is what does not exist: motion of a single frame, blur of an even grey.

    Attributes:
        brightness: mean luma (BT.601), 0 black to 1 white.
        contrast: standard deviation of luma within frames, mean over them; 0.5 is half black, half white.
        saturated: share of channel values that are 0 or 1, 254 or 255.
        blur: 0 sharp to 1 blurred: how little of neighbouring pixels' difference a further blur takes away
            (Crete et al. 2007, "The blur effect"); the median over frames.
        motion: grey levels (of 255) by which successive frames differ on average, cuts left out.
        repeated: share of frames that repeat the one before.
        bars: share of the picture that is black bars.
        cuts: number of the first frame behind every cut, among the frames looked at.
        looked_at: frames.
        hashes: perceptual hashes of :data:`SAMPLES` frames, 16 hexadecimal digits each
            (:func:`perceptual_hash`).
        damage: what of the clip cannot be decoded; empty: nothing was found.
    """

    brightness: float
    contrast: float
    saturated: float
    blur: float | None
    motion: float | None
    repeated: float | None
    bars: float
    cuts: tuple[int, ...]
    looked_at: int
    hashes: tuple[str, ...]
    damage: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"cuts": list(self.cuts), "hashes": list(self.hashes)}

    @classmethod
    def of_plain(cls, document: dict[str, Any]) -> ClipStats:
        """What :meth:`plain` has written."""
        lists = {name: tuple(document[name]) for name in ("cuts", "hashes")}
        return cls(**document | lists)


@dataclass(frozen=True)
class Frames:
    """The frames of a clip that its numbers are taken of.

    Attributes:
        stretches: reduced successive frames, uint8 [F, h, w, 3] each, F >= 1.
        starts: number of each stretch's first frame in the clip.
        samples: larger frames spread over the clip, uint8 [H, W, 3].
        damage: see :class:`ClipStats`.
    """

    stretches: Sequence[np.ndarray]
    starts: Sequence[int]
    samples: Sequence[np.ndarray]
    damage: str = ""

    @classmethod
    def of_video(cls, video: np.ndarray) -> Frames:
        """Of a clip in memory, RGB uint8 [F, H, W, 3]: a teacher's, for instance."""
        size = reduced_size(*video.shape[1:3])
        small = np.stack([_resized(frame, size) for frame in video])
        return cls([small], [0], [_limited(video[i]) for i in sample_numbers(len(video))])

    def stats(self) -> ClipStats:
        """The numbers."""
        bars = black_bars(self.stretches)
        inside = [bars.crop(stretch) for stretch in self.stretches]
        samples = [bars.crop(sample[None])[0] for sample in self.samples]
        grey = [np.stack([_grey(frame) for frame in stretch]).astype(np.float32) for stretch in inside]
        cuts = [find_cuts(stretch) for stretch in inside]
        steps = [_steps(luma, jumps) for luma, jumps in zip(grey, cuts, strict=True)]
        moved = np.concatenate(steps)
        blurs = [value for sample in samples if (value := blur(_grey(sample))) is not None]
        low, high = _ENDS
        return ClipStats(
            brightness=float(np.mean([luma.mean() for luma in grey]) / 255),
            contrast=float(np.mean([luma.std(axis=(1, 2)).mean() for luma in grey]) / 255),
            saturated=float(np.mean([((s <= low) | (s >= high)).mean() for s in samples])),
            blur=float(np.median(blurs)) if blurs else None,
            motion=float(moved.mean()) if len(moved) else None,
            repeated=float((moved <= _REPEATED).mean()) if len(moved) else None,
            bars=bars.share,
            cuts=tuple(start + cut for start, found in zip(self.starts, cuts, strict=True) for cut in found),
            looked_at=sum(map(len, self.stretches)),
            hashes=tuple(perceptual_hash(_grey(sample)) for sample in samples),
            damage=self.damage,
        )


def sample_numbers(frames: int) -> list[int]:
    """Numbers of :data:`SAMPLES` frames in the middle of as many equal parts of a clip."""
    return [(2 * i + 1) * frames // (2 * SAMPLES) for i in range(SAMPLES)]


def look(path: File, info: ClipInfo) -> Frames:
    """Decode those frames of ``path`` that its numbers are taken of.

    A single thread decodes, so that what FFmpeg conceals of damage does not depend on chance. Raises
    DataError, naming the file, when not one frame can be shown.
    """
    if info.photo:
        image = photos.frame(path)
        return Frames([_resized(image, reduced_size(info.height, info.width))[None]], [0], [_limited(image)])
    reader = _Reader(path, info)
    try:
        _decode(path, reader.read)
    except DataError as error:
        if not reader.samples and info.frames > WHOLE:  # a file that cannot be sought in
            reader = _Reader(path, info)
            _decode(path, reader.read_on)
        elif not reader.samples:
            raise
        else:
            said = str(error).removeprefix(f"{path} ")
            reader.damage = reader.damage or f"{said} after {reader.read_frames} of {info.frames} frames"
    if not reader.samples:
        raise DataError(f"{path}: no frame of it can be decoded")
    return reader.frames()


def _decode(path: File, read: Callable[[Opened], None]) -> None:
    with opened(path) as file:
        file.stream.codec_context.thread_count = 1
        read(file)


class _Reader:
    """Collects frames; what was read of a file that then turns out to be damaged is kept."""

    def __init__(self, path: File, info: ClipInfo) -> None:
        self._path, self._info = path, info
        self._size = reduced_size(info.height, info.width)
        self.stretches: list[list[np.ndarray]] = []
        self.starts: list[int] = []
        self.samples: list[np.ndarray] = []
        self.damage = ""
        self._damaged = 0

    def read(self, file: Opened) -> None:
        """All of a short clip; of a long one, from a few places on."""
        wanted = sample_numbers(self._info.frames)
        if self._info.frames <= WHOLE:
            self._stretch(file, shown_frames(file.container, file.stream), 0, set(wanted))
            if self.read_frames < self._info.frames:
                self.damage = f"ends after {self.read_frames} of {self._info.frames} frames"
        else:
            for number in wanted:
                frames = islice(_frames_from(file, number, self._info.rate), _LENGTH)
                self._stretch(file, frames, number, {number})
        self._say_damage()

    def read_on(self, file: Opened) -> None:
        """The same frames of a long clip that cannot be sought in: all between them are decoded."""
        frames, at = shown_frames(file.container, file.stream), 0
        for number in sample_numbers(self._info.frames):
            for _ in islice(frames, number - at):
                pass
            self._stretch(file, islice(frames, _LENGTH), number, {number})
            at = number + _LENGTH
        self._say_damage()

    def _say_damage(self) -> None:
        if self._info.frames > WHOLE and len(self.starts) < SAMPLES:
            self.damage = f"nothing to decode at {SAMPLES - len(self.starts)} of {SAMPLES} places"
        if self._damaged:
            self.damage = f"{self._damaged} of {self.read_frames} frames looked at are damaged"

    @property
    def read_frames(self) -> int:
        """How many were decoded so far."""
        return sum(map(len, self.stretches))

    def _stretch(self, file: Opened, frames: Any, start: int, wanted: set[int]) -> None:
        small: list[np.ndarray] = []
        for number, frame in enumerate(frames, start):
            if not small:
                self.stretches.append(small)
                self.starts.append(start)
            small.append(file.display.small(frame, *self._size))
            self._damaged += bool(frame.is_corrupt)
            if number in wanted:
                self.samples.append(_limited(file.display.rgb(frame)))

    def frames(self) -> Frames:
        return Frames([np.stack(s) for s in self.stretches], self.starts, self.samples, self.damage)


def _frames_from(file: Opened, number: int, rate: float) -> Any:
    """Frames from the time on at which frame ``number`` is shown at an even rate."""
    stream = file.stream
    begin = stream.start_time or 0
    at = begin + round(number / rate / stream.time_base)
    file.container.seek(at, stream=stream, backward=True)
    slack = float(0.5 / rate / stream.time_base)
    for frame in shown_frames(file.container, stream):
        if frame.pts is None or frame.pts > at - slack:
            yield frame


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a frame whose longest side is at most :data:`SMALL`."""
    scale = min(1.0, SMALL / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _limited(frame: np.ndarray) -> np.ndarray:
    """A frame whose shortest side is at most :data:`LARGE`."""
    height, width = frame.shape[:2]
    scale = min(1.0, LARGE / min(height, width))
    return _resized(frame, (max(1, round(height * scale)), max(1, round(width * scale))))


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == size:
        return frame
    cv2 = opencv()
    found: np.ndarray = cv2.resize(np.ascontiguousarray(frame), size[::-1], interpolation=cv2.INTER_AREA)
    return found


def _grey(frame: np.ndarray) -> np.ndarray:
    """Luma, uint8 [H, W], of RGB uint8 [H, W, 3]."""
    cv2 = opencv()
    found: np.ndarray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return found


def _steps(luma: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
    """Mean absolute difference of every frame to the one before, in grey levels, without cuts."""
    steps = [float(np.abs(b - a).mean()) for a, b in pairwise(luma)]
    behind = set(cuts)
    return np.array([step for number, step in enumerate(steps, 1) if number not in behind])


@dataclass(frozen=True)
class Bars:
    """Black bars, as shares of height and width at each edge."""

    top: float
    bottom: float
    left: float
    right: float

    @property
    def share(self) -> float:
        return 1 - (1 - self.top - self.bottom) * (1 - self.left - self.right)

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """What of [F, H, W, 3] lies inside."""
        height, width = frames.shape[1:3]
        return frames[:, _inside(self.top, self.bottom, height), _inside(self.left, self.right, width)]


def _inside(before: float, after: float, size: int) -> slice:
    """What of ``size`` is in no bar, one at least: shares of whole numbers come back as these."""
    begin = min(size - 1, math.ceil(before * size - 1e-6))
    return slice(begin, max(begin + 1, size - math.ceil(after * size - 1e-6)))


def black_bars(stretches: Sequence[np.ndarray]) -> Bars:
    """Rows and columns at the edges that are black in all frames; none of a clip that is all black."""
    brightest = np.max([stretch.max(axis=(0, 3)) for stretch in stretches], axis=0)  # [h, w]
    edges = []
    for axis in (1, 0):
        lit = np.flatnonzero(brightest.max(axis=axis) > _BLACK)
        size = brightest.shape[1 - axis]
        edges += [lit[0] / size, 1 - (lit[-1] + 1) / size] if len(lit) else [0.0, 0.0]
    return Bars(*map(float, edges))


def blur(grey: np.ndarray) -> float | None:
    """The blur effect of luma [H, W] (Crete et al. 2007): 0 sharp, 1 blurred; None where nothing differs.

    Along each axis the frame is averaged over 11 pixels; the less its differences shrink by that, the more
    blurred it was. Of both axes the larger counts.
    """
    cv2 = opencv()
    image = grey.astype(np.float32)
    found = []
    for x, y in ((1, 0), (0, 1)):
        smooth = cv2.blur(image, (_FILTER, 1) if x else (1, _FILTER), borderType=cv2.BORDER_REFLECT)
        before, after = (np.abs(cv2.Sobel(i, cv2.CV_32F, x, y)) for i in (image, smooth))
        total = float(before.sum(dtype=np.float64))
        if total:
            lost = float(np.maximum(before - after, 0).sum(dtype=np.float64))
            found.append(1 - lost / total)
    return max(found) if found else None


def perceptual_hash(grey: np.ndarray) -> str:
    """64 bits of luma [H, W] that hardly change with size, compression, brightness and contrast (pHash,
    Zauner 2010): which of the 8 x 8 lowest frequencies of a 32 x 32 reduction lie above their median."""
    cv2 = opencv()
    waves = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[
        :8, :8
    ].copy()
    waves[0, 0] = 0
    waves[np.abs(waves) < 1] = 0  # an even grey has no frequencies, only rounding
    bits = (waves > np.median(waves)).flatten()
    return np.packbits(bits).tobytes().hex()
