"""What video files hold, and their frames as a player shows them.

:mod:`~cosmos_distill.data.container` says which stream and frames that is, and how files are opened;
:mod:`~cosmos_distill.data.display` how a frame is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cosmos_distill.data import photos
from cosmos_distill.data.container import (
    Opened,
    decoder_of,
    index_of,
    is_hidden,
    opened,
    read_alike,
    read_whole,
    shown_frames,
    video_stream,
)
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.rates import ROUNDING
from cosmos_distill.data.seeks import Inexact, Place, Seeks, frames_from
from cosmos_distill.members import File

T = TypeVar("T")
_SUFFIXES = """
    .mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .vob .ts .m2ts .mts .flv .f4v .wmv .asf .ogv .3gp .3g2 .mxf
    .y4m .nut .ivf
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of video files, in lower case, to choose among the files of a folder."""

_BY_DECODING = ("mpeg", "mpegts")
"""Streams that a parser cuts into packets, which now and then are fields or hold no frame to show."""
_ASPECT = 0.02
"""Share by which aspect ratios may differ: 1920 x 1080 and 480 x 272 are the same picture."""
_TIE = Fraction(1, 10**6)
"""Seconds by which a time may be nearer to the later of two frames and yet between them: it was rounded."""
_SURPLUS = 2
"""Frames, of the slower of the two, by which a control may be longer than its clip."""


@dataclass(frozen=True)
class ClipInfo:
    """What a clip holds, as a player shows it.

    Attributes:
        frames: number of frames.
        height: pixels, after turning, cropping and making pixels square.
        width: likewise.
        rate: mean frames per second.
        duration: seconds from the beginning of the first frame to the end of the last.
        photo: it is a photo, of which rate and duration say nothing.
    """

    frames: int
    height: int
    width: int
    rate: float
    duration: float
    photo: bool = False


class Window(NamedTuple):
    """Frames of a clip, or what ``transform`` made of each; the clip's frames per second where they lie; and
    when each is shown, in seconds after the clip's first frame."""

    frames: list[Any]
    rate: float
    times: tuple[float, ...]


Transform = Callable[[np.ndarray], Any]


def probe(path: File) -> ClipInfo:
    """What ``path`` holds, a video or a photo. Only its first frame is decoded, and an MP4 is not read beyond
    its index; an MPEG program or transport stream, which has none, is decoded once.

    Raises DataError when it is no video, holds no frame, is cut off, or cannot be shown (HDR, for instance).
    """
    if photos.is_photo(path):
        height, width = photos.frame(path).shape[:2]
        return ClipInfo(1, height, width, photos.RATE, 1 / photos.RATE, photo=True)
    with opened(path) as (container, stream, display, clock):
        shown: tuple[int, int] | None = None
        ticks: list[int | None] = [*(index_of(container, stream, path, whole=True) or ())]
        if ticks:
            first = next(shown_frames(container, stream), None)
            shown = None if first is None else display.check(first)
        else:
            all_of_it, decoder = container.format.name in _BY_DECODING, decoder_of(stream)
            for packet in container.demux(stream):
                frames = decoder.decode(packet) if all_of_it or shown is None else []
                for frame in frames:
                    shown = display.check(frame)
                if all_of_it:
                    ticks += [frame.pts for frame in frames]
                elif packet.size and not packet.is_discard and not is_hidden(packet, stream):
                    ticks.append(packet.pts)
    if shown is None or not ticks:
        raise DataError(f"{path}: holds no frame")
    rate = clock.mean_rate(ticks)
    return ClipInfo(len(ticks), *shown, float(rate), float(len(ticks) / rate))


def count_frames(path: File) -> int:
    """Frames of ``path`` as shown. Raises like :func:`probe`."""
    return probe(path).frames


def decode(
    path: File, transform: Transform | None = None, wanted: range | None = None
) -> tuple[list[Any], float]:
    """Frames of ``path`` and its frames per second, as :func:`window` gives them.

    Where ``wanted`` is None it is all frames, and the mean rate, however unsteady it is.
    """
    if wanted is not None:
        return window(path, wanted, transform)[:2]

    def read(file: Opened) -> tuple[list[Any], float]:
        container, stream, display, clock = file
        frames: list[Any] = []
        ticks: list[int | None] = []
        for frame in shown_frames(container, stream):
            image = display.rgb(frame)
            frames.append(image if transform is None else transform(image))
            ticks.append(frame.pts)
        promised = index_of(container, stream, path) or ()
        if not frames:
            raise DataError(f"{path}: holds no frame")
        if len(frames) < len(promised):
            raise DataError(f"{path}: truncated, {len(frames)} of {len(promised)} frames")
        return frames, float(clock.mean_rate(ticks))

    return read_alike(path, read)


def decode_as_stored(path: File, transform: Transform) -> tuple[list[Any], float]:
    """Every frame as it lies in the file, and the rate that the file states.

    Nothing is turned or made square, and untagged colours are BT.601's, in high definition too: FFmpeg's
    conversion when it is told nothing. What was trained on clips read this way keeps its input.
    """
    with video_stream(path) as (container, stream):
        stream.thread_type = "AUTO"
        frames = [transform(f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        rate = float(stream.average_rate)
    return frames, rate


def window(
    path: File, wanted: range, transform: Transform | None = None, seeks: Seeks | None = None
) -> Window:
    """The frames with the numbers ``wanted``, RGB uint8 [H, W, 3] or ``transform`` of each.

    Frames are decoded in order up to the last one wanted: from the place before the first of them where
    ``seeks`` has one and reading from there is exact, and else from the beginning, because a seek may land
    beside it. The rate comes from the times of these frames. Raises DataError, naming the file, when it
    cannot be read that far, when a wanted frame is damaged or cannot be shown, or when the frames do not
    follow each other at a steady rate.
    """

    if photos.is_photo(path):
        return Window(_photo(path, [wanted[-1] / photos.RATE], transform), photos.RATE, (0.0,))

    def read(file: Opened, place: Place | None) -> Window:
        frames: list[Any] = []
        ticks: dict[int, int | None] = {} if seeks is None or place is None else {0: seeks.first}
        number = -1
        for number, frame in _numbered(file, seeks, place):
            ticks[number] = frame.pts
            file.display.check(frame)
            if number in wanted:
                if frame.is_corrupt:
                    raise DataError(f"{path}: frame {number} is damaged")
                image = file.display.rgb(frame)
                frames.append(image if transform is None else transform(image))
            if number == wanted[-1]:
                break
        if number < wanted[-1]:
            raise DataError(f"{path}: ends after {number + 1} frames, and {wanted[-1] + 1} are needed")
        first, *times = file.clock.seconds(ticks, chain([0], wanted))
        rate = file.clock.steady_rate(times, wanted.step)
        return Window(frames, float(rate), tuple(float(t - first) for t in times))

    return _read(path, read, None if seeks is None else seeks.before(wanted[0]))


def at_times(
    path: File, times: Sequence[float], transform: Transform | None = None, seeks: Seeks | None = None
) -> list[Any]:
    """The frames that are on the screen at ``times``, rising seconds after the first frame.

    For each it is the last frame that began by then, within a millisecond. ``seeks`` as for :func:`window`.

    Raises DataError, naming the file, when it cannot be read or ends before the last of these times.
    """
    return _by_time(path, times, transform, seeks, lambda begin, end: end - ROUNDING)[0]


def resampled(
    path: File,
    begin: float,
    count: int,
    rate: float,
    transform: Transform | None = None,
    seeks: Seeks | None = None,
) -> Window:
    """``count`` frames at ``rate`` frames per second from ``begin`` on, in seconds after the first frame.

    Each is the frame whose own time is nearest, the earlier of two; how long frames are shown may vary, and
    one may come twice. The window's times are those of the frames that were taken. ``seeks`` as for
    :func:`window`. Raises DataError, naming the file, when it cannot be read or is too short.
    """
    times = [begin + number / rate for number in range(count)]
    found, taken = _by_time(path, times, transform, seeks, lambda begin, end: (begin + end) / 2 + _TIE)
    return Window(found, rate, tuple(taken))


def _by_time(
    path: File,
    times: Sequence[float],
    transform: Transform | None,
    seeks: Seeks | None,
    until: Callable[[Fraction, Fraction], Fraction],
) -> tuple[list[Any], list[float]]:
    """Frames for rising times, and when they begin. One serves the times before ``until`` of its beginning
    and its end."""
    if photos.is_photo(path):
        return _photo(path, times, transform), [0.0] * len(times)

    def read(file: Opened, place: Place | None) -> tuple[list[Any], list[float]]:
        display, clock = file.display, file.clock
        frames: list[Any] = []
        taken: list[float] = []
        current: Any = None
        image: Any = None
        start = begin = end = length = Fraction(0)
        if seeks is not None and place is not None:
            start = clock.seconds_of(seeks.first, 0)
            begin = end = clock.seconds_of(place.tick, place.number) - start
        for number, frame in chain(_numbered(file, seeks, place), [(-1, None)]):
            if frame is not None:
                if frame.is_corrupt:
                    raise DataError(f"{path}: frame {number} is damaged")
                now = clock.seconds_of(frame.pts, number)
                start = start if number else now
                length = now - start - begin if number else 1 / (clock.stated or Fraction(1))
                end = now - start
            else:
                end = begin + length
            last = end - ROUNDING if frame is None else until(begin, end)
            while current is not None and len(frames) < len(times) and times[len(frames)] < last:
                if image is None:
                    image = display.rgb(current) if transform is None else transform(display.rgb(current))
                frames.append(image)
                taken.append(float(begin))
            if len(frames) == len(times):
                return frames, taken
            current, image, begin = frame, None, end
        raise DataError(f"{path}: ends after {float(end):.3f} s, and a frame at {times[-1]:.3f} s is needed")

    return _read(path, read, None if seeks is None else seeks.by(times[0]))


def _photo(path: File, times: Sequence[float], transform: Transform | None) -> list[Any]:
    """The frame of a photo, which is there at time 0 alone, for each of some times."""
    if times[-1] > float(ROUNDING):
        raise DataError(f"{path}: is a photo, and a frame at {times[-1]:.3f} s is needed")
    image = photos.frame(path)
    return [image if transform is None else transform(image)] * len(times)


def _numbered(file: Opened, seeks: Seeks | None, place: Place | None) -> Iterator[tuple[int, Any]]:
    """Frames and their numbers, from a place or from the beginning on."""
    if seeks is None or place is None:
        yield from enumerate(shown_frames(file.container, file.stream))
        return
    for number, frame in enumerate(frames_from(file, place), place.number):
        if file.display.size(frame) != (seeks.height, seeks.width):
            raise Inexact(f"{file.clock.path}: its frames change in size")
        yield number, frame


def _read(path: File, read: Callable[[Opened, Place | None], T], place: Place | None) -> T:
    """``read`` from a place where that is exact, and else from the beginning, which says what is wrong."""
    if place is not None:
        with suppress(DataError):
            return read_whole(path, lambda file: read(file, place))
    return read_alike(path, lambda file: read(file, None))


def check_control(clip: ClipInfo, control: ClipInfo, name: str) -> None:
    """Raises DataError when a control video cannot belong to a clip: another aspect ratio, or other times.

    Size and rate may differ: the control is scaled like the clip, and read at the times of the clip's frames.
    It has to cover them, and may end :data:`_SURPLUS` frames later, as programs leave it that round a length
    up or repeat the last frame. One that is longer still is of another cut, whose beginning nobody knows.
    """
    check_aspect((clip.height, clip.width), (control.height, control.width), f"its {name} control")
    covers = control.duration - float(ROUNDING) > clip.duration - 1 / clip.rate
    surplus = _SURPLUS / min(clip.rate, control.rate)
    if not covers or control.duration > clip.duration + surplus + float(ROUNDING):
        raise DataError(
            f"{clip.frames} frames, but its {name} control has {control.frames}: they last "
            f"{clip.duration:.3f} s and {control.duration:.3f} s"
        )


def check_aspect(size: tuple[int, int], other: tuple[int, int], name: str) -> None:
    """Raises DataError when two (height, width) differ in aspect ratio by more than rounded sizes do."""
    (height, width), (h, w) = size, other
    wanted = w * height / h
    if abs(wanted - width) > max(1.0, _ASPECT * width):
        raise DataError(f"{width} x {height} pixels, but {name} has another aspect ratio, {w} x {h}")
