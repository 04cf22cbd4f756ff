"""When frames are shown, and at which rate. Times are exact: fractions of a second."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from cosmos_distill.data.errors import DataError

ROUNDING = Fraction(1, 1000)
"""Seconds. Matroska, FLV and many recorders keep whole milliseconds."""
_ENOUGH = 4
"""Rounded times of fewer frames say less of their rate than the file's header does."""


def seconds_of(tick: int | None, number: int, stream: Any, path: Path) -> Fraction:
    """When a frame is shown; by its number and the stated rate where its file does not say."""
    if tick is not None:
        return Fraction(tick * stream.time_base)
    rate = stated_rate(stream)
    if not rate:
        raise DataError(f"{path}: states neither times nor a frame rate")
    return number / rate


def seconds(ticks: Sequence[int | None], stream: Any, path: Path) -> list[Fraction]:
    """:func:`seconds_of` every frame; all by number where one does not say."""
    known = list(ticks) if None not in ticks else [None] * len(ticks)
    return [seconds_of(tick, number, stream, path) for number, tick in enumerate(known)]


def stated_rate(stream: Any) -> Fraction | None:
    """Frames per second as the file states them, or as FFmpeg guesses them from its first packets."""
    return stream.average_rate or stream.guessed_rate or None


def _tolerance(stream: Any) -> Fraction:
    return max(ROUNDING, stream.time_base)


def mean_rate(times: Sequence[Fraction], stream: Any, path: Path) -> Fraction:
    """Frames per second over all ``times``: the stated rate where it is that, up to rounding."""
    stated = stated_rate(stream)
    span, intervals = times[-1] - times[0], len(times) - 1
    if stated and (intervals == 0 or abs(intervals / stated - span) <= _tolerance(stream)):
        return stated
    if span <= 0:
        raise DataError(f"{path}: states no frame rate")
    return intervals / span


def steady_rate(times: Sequence[Fraction], step: int, stream: Any, path: Path) -> Fraction:
    """Frames per second of a clip whose every ``step``-th frame is shown at ``times``.

    It is the stated rate where rounding explains all that differs from it, and else the mean. Raises
    DataError when a frame is further from its place on an even grid than a fifth of the interval, and than a
    millisecond or the file's own unit of time.
    """
    stated, tolerance = stated_rate(stream), _tolerance(stream)
    fits = stated is not None and _spread(times, step / stated) <= tolerance
    if len(times) == 1 and stated is None:
        raise DataError(f"{path}: states no frame rate")
    if stated is not None and fits and len(times) < _ENOUGH:
        return stated
    steps = [b - a for a, b in pairwise(times)]
    mean = (times[-1] - times[0]) / len(steps)
    if stated is not None and fits and _spread(times, step / stated) <= _spread(times, mean):
        return stated
    off = max(abs(t - times[0] - i * mean) for i, t in enumerate(times))
    if min(steps) <= 0 or off > max(mean / 5, tolerance):
        raise DataError(
            f"{path}: no steady frame rate from {float(times[0]):.3f} s on: its frames are shown for "
            f"{float(min(steps)):.3f} to {float(max(steps)):.3f} s"
        )
    return step / mean


def _spread(times: Sequence[Fraction], interval: Fraction) -> Fraction:
    """How far, at least, the times of a grid with this interval were moved to become these."""
    moved = [t - i * interval for i, t in enumerate(times)]
    return max(moved) - min(moved)
