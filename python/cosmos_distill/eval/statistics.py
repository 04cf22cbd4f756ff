"""How sure a score is: bootstrap over independent units (Efron 1979), the same replicas for everyone.

Windows of one shot resemble each other, so a hundred of them are not a hundred observations. What is drawn
with replacement are therefore units (shots), each with all its clips; and since every candidate is scored
on the same replicas, the difference of two is known better than either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.eval.missing import NoScore

REPLICAS = 400
LEAST_UNITS = 5
"""Of n units there are C(2n - 1, n) distinct replicas: 126 of 5, but only 35 of 4, which is too few to take
the 2.5 % at either end of."""

Statistic = Callable[[Tensor], float]
"""Score where every unit u counts ``counts[u]`` times, fp64 [U]; raises NoScore."""


@dataclass(frozen=True)
class Sample:
    """Numbers per clip of a set of clips, in draws of equal size."""

    values: Tensor
    """[N, ...]: draw after draw."""
    units: Tensor | None = None
    """Which unit each clip is from, int64 [N], from 0. Sets share their numbering: two clips of one unit, in
    whichever sets, are not independent. None: unknown, every clip is taken for a unit of its own and
    nothing is said about how sure a score is."""
    draws: int = 1
    """Of noise (and of windows, where they differ); a score is the mean over draws."""

    def __post_init__(self) -> None:
        if self.units is not None and self.units.shape != self.values.shape[:1]:
            raise ValueError(f"{len(self.values)} clips need as many units, not {list(self.units.shape)}")
        if len(self.values) % self.draws:
            raise ValueError(f"{len(self.values)} clips are not {self.draws} draws of one size")

    def numbered(self, first: int = 0) -> Tensor:
        """The units, or where they are unknown one for each clip, counted from ``first``."""
        if self.units is None:
            return torch.arange(first, first + len(self.values))
        return self.units

    def parts(self) -> list[Sample]:
        """One sample for each draw."""
        units = [None] * self.draws if self.units is None else self.units.chunk(self.draws)
        return [Sample(v, u) for v, u in zip(self.values.chunk(self.draws), units, strict=True)]


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    draws: tuple[float, ...] = ()
    """The value of each draw."""
    reason: str | None = None
    """Why value or interval is None."""
    replicas: np.ndarray | None = field(default=None, repr=False, compare=False)
    """The value on each replica."""

    def document(self) -> dict[str, Any]:
        """For JSON: without the replicas, and without a reason where none is needed."""
        found: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        if self.draws:
            found["draws"] = list(self.draws)
        return found | ({} if self.reason is None else {"reason": self.reason})


def resamples(count: int, replicas: int = REPLICAS, seed: int = 0) -> Tensor:
    """How often each of ``count`` things is taken in each replica, fp64 [replicas, count]; the same for
    every score of a report, so that scores of the same clips may be compared replica by replica."""
    random = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(random.multinomial(count, np.full(count, 1 / count), size=replicas)).double()


def interval(
    statistic: Callable[[Tensor | None], float], weights: Tensor, *, centred: bool = False
) -> tuple[float, float]:
    """95 % interval of ``statistic(weights)``, where ``statistic(None)`` is its value on all clips.

    Args:
        weights: From :func:`resamples`.
        centred: Move the replicas so that their mean is the value itself. For statistics that resampling
            inflates, as it does a Fréchet distance: with clips repeated, the covariance looks narrower
            than it is, and all replicas may lie above the value.

    Raises:
        NoScore: one clip, or too few that the statistic is defined for: some replicas have none.
    """
    if weights.shape[1] < 2:
        raise NoScore("one clip says nothing of the spread")
    found, missing = [], 0
    for w in weights:
        try:
            found.append(statistic(w))
        except NoScore:
            missing += 1
    if missing:
        raise NoScore(f"not defined in {missing} of {len(weights)} resamples of these clips")
    values = np.array(found)
    low, high = np.quantile(values, [0.025, 0.975])
    if centred:
        shift = statistic(None) - values.mean()
        low, high = max(0.0, low + shift), max(0.0, high + shift)  # a distance is not negative
    return float(low), float(high)


class Resampling:
    """Replicas of the units of some clips.

    Args:
        units: Of the clips that are scored, int64 [N]; None: unknown.
        total: Units there are in all, also those that are only in the reference; those are never drawn and
            always count once.
    """

    def __init__(self, units: Tensor | None, total: int = 0, replicas: int = REPLICAS, seed: int = 0) -> None:
        self.reason: str | None = None
        total = max(total, 1 if units is None else int(units.max()) + 1)
        self.counts = torch.ones(0, total, dtype=torch.float64)
        if units is None:
            self.reason = "it is not known which clips are independent (the data name no shots)"
            return
        drawn = units.unique()
        if len(drawn) < LEAST_UNITS:
            self.reason = f"{len(drawn)} independent shots are too few for an interval: {LEAST_UNITS} or more"
            return
        self.counts = torch.ones(replicas, total, dtype=torch.float64)
        self.counts[:, drawn] = resamples(len(drawn), replicas, seed)

    def once(self) -> Tensor:
        """Every unit counted once, [U]."""
        return torch.ones(self.counts.shape[1], dtype=torch.float64)

    def score(
        self,
        parts: list[Statistic],
        *,
        centred: bool = False,
        most: int = REPLICAS,
        limits: tuple[float, float] = (-np.inf, np.inf),
    ) -> Score:
        """Mean of the statistics of several draws, and its interval.

        Args:
            centred: Move the replicas so that their mean is the value. For statistics that resampling
                inflates, as it does a Fréchet distance: with clips repeated, the covariance looks narrower
                than it is.
            most: Take the first so many replicas only, for a statistic that is slow.
            limits: Values lie between these, and so do the replicas once they are moved.
        """
        try:
            draws = tuple(part(self.once()) for part in parts)
        except NoScore as error:
            return Score(None, reason=str(error))
        value = sum(draws) / len(draws)
        if self.reason is not None:
            return Score(value, draws=draws, reason=self.reason)
        try:
            found = [sum(part(counts) for part in parts) / len(parts) for counts in self.counts[:most]]
        except NoScore as error:
            return Score(value, draws=draws, reason=f"not defined on every replica of the shots: {error}")
        replicas = np.array(found)
        if centred:
            replicas = (replicas + value - replicas.mean()).clip(*limits)
        return _scored(value, replicas, draws)


def difference(a: Score, b: Score, of: Callable[[Any], Any] = lambda value: value) -> Score:
    """``of(a) - of(b)``, replica by replica: both were scored with one :class:`Resampling`.

    Args:
        of: Taken of values and replicas first, e.g. how far they are from 1.
    """
    if a.value is None or b.value is None:
        return Score(None, reason=a.reason if a.value is None else b.reason)
    value = float(of(a.value) - of(b.value))
    if a.replicas is None or b.replicas is None:
        return Score(value, reason=a.reason if a.replicas is None else b.reason)
    count = min(len(a.replicas), len(b.replicas))
    return _scored(value, of(a.replicas[:count]) - of(b.replicas[:count]))


def _scored(value: float, replicas: np.ndarray, draws: tuple[float, ...] = ()) -> Score:
    low, high = np.quantile(replicas, [0.025, 0.975])
    return Score(value, float(low), float(high), draws, replicas=replicas)


def clip_weights(sample: Sample, counts: Tensor) -> Tensor:
    """How often each clip of ``sample`` counts where its unit counts ``counts`` [U] times, fp64 [N]. Units
    that ``counts`` does not reach to, or that are unknown, count once.

    Raises:
        NoScore: none counts.
    """
    if sample.units is None:
        return torch.ones(len(sample.values), dtype=torch.float64)
    more = int(sample.units.max()) + 1 - len(counts)
    counts = torch.cat([counts, counts.new_ones(more)]) if more > 0 else counts
    weights = counts[sample.units]
    if not weights.any():
        raise NoScore("no clip counts")
    return weights


def pooled(score: Callable[[Tensor, Tensor | None], float]) -> Callable[[Sample], Statistic]:
    """The statistic of a score that knows numbers per clip [N, ...] and how often each clip counts [N]."""

    def of(sample: Sample) -> Statistic:
        return lambda counts: score(sample.values, clip_weights(sample, counts))

    return of
