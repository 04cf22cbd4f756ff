"""When frames are shown, and at which rate. Times are exact: fractions of a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from cosmos_distill.data.errors import DataError
from cosmos_distill.members import File

ROUNDING = Fraction(1, 1000)
"""Seconds. Matroska, FLV and many recorders keep whole milliseconds."""
_ENOUGH = 4
"""Rounded times of fewer frames say less of their rate than the file's header does."""


@dataclass(frozen=True)
class Clock:
    """What one video stream says of time. Its own values: it outlives the open file.

    Attributes:
        path: the file, for messages.
        unit: seconds of a tick.
        stated: frames per second as the file states them, or as FFmpeg guesses them from its first packets.
    """

    path: File
    unit: Fraction
    stated: Fraction | None

    def seconds_of(self, tick: int | None, number: int) -> Fraction:
        """When a frame is shown; by its number and the stated rate where its file does not say."""
        if tick is not None:
            return tick * self.unit
        if not self.stated:
            raise DataError(f"{self.path}: states neither times nor a frame rate")
        return number / self.stated

    def seconds(self, ticks: Mapping[int, int | None], numbers: Iterable[int]) -> list[Fraction]:
        """:meth:`seconds_of` these of the frames that were read; by number where one of all does not say."""
        silent = None in ticks.values()
        return [self.seconds_of(None if silent else ticks[number], number) for number in numbers]

    def mean_rate(self, ticks: Sequence[int | None]) -> Fraction:
        """Frames per second over all frames: the stated rate where it is that, up to rounding."""
        known, intervals = [tick for tick in ticks if tick is not None], len(ticks) - 1
        span = (max(known) - min(known)) * self.unit if len(known) == len(ticks) else Fraction(0)
        if self.stated and (span <= 0 or abs(intervals / self.stated - span) <= self._tolerance):
            return self.stated
        if span <= 0:
            raise DataError(f"{self.path}: states no frame rate")
        return intervals / span

    def steady_rate(self, times: Sequence[Fraction], step: int) -> Fraction:
        """Frames per second of a clip whose every ``step``-th frame is shown at ``times``.

        It is the stated rate where rounding explains all that differs from it, and else the mean. Raises
        DataError when a frame is further from its place on an even grid than a fifth of the interval, and
        than a millisecond or the file's own unit of time.
        """
        moved = _moved(times, step / self.stated) if self.stated else Fraction(0)
        fits = self.stated is not None and moved <= self._tolerance
        if self.stated and fits and len(times) < _ENOUGH:
            return self.stated
        if len(times) == 1:
            raise DataError(f"{self.path}: states no frame rate")
        steps = [b - a for a, b in pairwise(times)]
        mean = (times[-1] - times[0]) / len(steps)
        if self.stated and fits and moved <= _moved(times, mean):
            return self.stated
        off = max(abs(t - times[0] - i * mean) for i, t in enumerate(times))
        if min(steps) <= 0 or off > max(mean / 5, self._tolerance):
            raise DataError(
                f"{self.path}: no steady frame rate from {float(times[0]):.3f} s on: its frames are shown "
                f"for {float(min(steps)):.3f} to {float(max(steps)):.3f} s"
            )
        return step / mean

    @property
    def _tolerance(self) -> Fraction:
        return max(ROUNDING, self.unit)


def _moved(times: Sequence[Fraction], interval: Fraction) -> Fraction:
    """How far, at least, the times of a grid with this interval were moved to become these."""
    moved = [t - i * interval for i, t in enumerate(times)]
    return max(moved) - min(moved)
