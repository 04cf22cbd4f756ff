"""Windows of clips: where they may begin, and in which of several shapes a clip is trained. Torch-free."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, overload

from cosmos_distill.config import Data
from cosmos_distill.data.video import ClipInfo

_ROUNDED = 1e-6
"""Frames by which a product of rates may be less than it is."""


def window_span(data: Data) -> int:
    """Frames of a clip from the first to the last of a window."""
    return (data.frames - 1) * data.stride + 1


class Cut(NamedTuple):
    """Where one shot of a clip ends and the next begins.

    Attributes:
        end: number of the frame behind the last of the shot before; what lies between it and ``frame`` is a
            transition, of neither.
        frame: number of the first frame of the next shot.
        last: when the last frame of the shot before is shown, in seconds after the clip's first frame.
        first: when the first of the next one is.
    """

    end: int
    frame: int
    last: float
    first: float


class Windows(Sequence[int]):
    """Where the windows of a clip begin: numbers of frames, rising.

    Args:
        runs: Of each shot, the numbers of the frames that a window may begin at.
    """

    def __init__(self, runs: Iterable[range]) -> None:
        self._runs = tuple(run for run in runs if run)
        self._ends = tuple(accumulate(map(len, self._runs)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> int: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[int]: ...

    def __getitem__(self, number: int | slice) -> int | Sequence[int]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        run = bisect_right(self._ends, number)
        return self._runs[run][number - (self._ends[run - 1] if run else 0)]


def windows_of(info: ClipInfo, data: Data, cuts: Sequence[Cut] = ()) -> Windows:
    """The windows that a clip has: one beginning at each of its frames, in the mean, from which on it is long
    enough, and its shot, where ``cuts`` part it. None: it is too short."""
    if data.fps is None:
        span = window_span(data)
        return Windows(range(begin, end - span + 1) for begin, end in _shots(info, cuts))
    # By time, whatever rate frames really come at: the last time of a window is no later than the last frame
    # of its shot, and its first no earlier than the first.
    later = (data.frames - 1) * info.rate / data.fps  # than the first frame is the last, in the clip's frames
    begins = [0, *(math.ceil(cut.first * info.rate - _ROUNDED) for cut in cuts)]
    ends = [*(cut.last * info.rate for cut in cuts), info.frames - 1]
    return Windows(
        range(begin, math.floor(end - later + _ROUNDED) + 1) for begin, end in zip(begins, ends, strict=True)
    )


def longest_shot(info: ClipInfo, cuts: Sequence[Cut]) -> int:
    """Frames of the longest shot."""
    return max(end - begin for begin, end in _shots(info, cuts))


def _shots(info: ClipInfo, cuts: Sequence[Cut]) -> Iterator[tuple[int, int]]:
    """First frame, and the one behind the last, of every shot."""
    begins, ends = [0, *(cut.frame for cut in cuts)], [*(cut.end for cut in cuts), info.frames]
    return zip(begins, ends, strict=True)


def shape_of(info: ClipInfo, data: Data, cuts: Sequence[Cut] = ()) -> Data | None:
    """The shape that a clip is trained in: among those that it, or one of its shots, is long enough for the
    longest of those whose aspect ratio is nearest to its own. None: it is too short for all."""
    fitting = [shape for shape in data.shapes() if windows_of(info, shape, cuts)]

    def apart(shape: Data) -> tuple[float, int, int]:
        ratio = abs(math.log(shape.width * info.height / (shape.height * info.width)))
        return round(ratio, 6), -shape.frames, -shape.height * shape.width

    return min(fitting, key=apart, default=None)


def too_short(data: Data, split: str) -> str:
    """That of clips of many shapes none is as long as what is drawn and scored."""
    return (
        f"no usable clip for {split} has the {data.frames} frames that are drawn and scored: lower "
        "data.frames, or hold longer clips out (data.held_out)"
    )
