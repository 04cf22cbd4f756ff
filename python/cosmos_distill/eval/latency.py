"""Wall-clock latency of samplers, measured so that a busy machine harms all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latency:
    """Median and extremes over rounds, in seconds per call."""

    median: float
    fastest: float
    slowest: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 3,
    repeats: Mapping[str, int] | None = None,
    warm: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time every call once a round, in turn, after one untimed call of each.

    Args:
        calls: What to time, by name.
        rounds: Timed rounds.
        repeats: Calls in a row that make one measurement, for calls so short that the clock's start-up and
            the caches left by the other call would dominate.
        warm: What to call untimed in place of a call that is long, to the same effect.
    """
    repeats = repeats or {}
    for call in (dict(calls) | dict(warm or {})).values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times = []
            for _ in range(repeats.get(name, 1)):
                _wait()
                begin = clock()
                call()
                _wait()
                times.append(clock() - begin)
            taken[name].append(statistics.median(times))
    return {n: Latency(statistics.median(t), min(t), max(t), rounds) for n, t in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
