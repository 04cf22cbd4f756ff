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

    It is the stated rate where they follow it. Raises DataError when one of them is further from its place on
    an even grid than a fifth of the interval, and than a millisecond or the file's own unit of time.
    """
    stated, tolerance, start = stated_rate(stream), _tolerance(stream), times[0]
    if stated and all(abs(t - start - i * step / stated) <= tolerance for i, t in enumerate(times)):
        return stated
    if len(times) == 1:
        raise DataError(f"{path}: states no frame rate")
    steps = [b - a for a, b in pairwise(times)]
    mean = (times[-1] - start) / len(steps)
    off = max(abs(t - start - i * mean) for i, t in enumerate(times))
    if min(steps) <= 0 or off > max(mean / 5, tolerance):
        raise DataError(
            f"{path}: no steady frame rate from {float(start):.3f} s on: its frames are shown for "
            f"{float(min(steps)):.3f} to {float(max(steps)):.3f} s"
        )
    return step / mean
