"""Sets of clips under several metrics: one pass over each set, scores on the same replicas of the shots,
paired differences between candidates, and the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.metrics import find
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Resampling, Sample, Score, difference
from cosmos_distill.eval.views import View

Metrics = Mapping[str, Metric]
Numbers = dict[str, Tensor | NoScore]
"""Per clip of a batch, by the first of the metrics that read them."""


def read(metrics: Metrics, view: View, *, as_set: bool = False) -> Numbers:
    """What ``metrics`` read of one batch, or why they cannot. ``as_set`` as of :class:`Readings`."""
    found: Numbers = {}
    for reads, name in _readers(metrics, as_set).items():
        try:
            found[name] = view.of(reads)
        except NoScore as reason:
            found[name] = reason
    return found


def _readers(metrics: Metrics, as_set: bool) -> dict[Callable[[View], Tensor], str]:
    """Every function that is read by, once, and the first metric that does."""
    found: dict[Callable[[View], Tensor], str] = {}
    for name, metric in metrics.items():
        if not as_set or metric.against is not None:
            found.setdefault(metric.reads, name)
    return found


class Readings:
    """Numbers per clip of one set of clips, collected batch by batch.

    Args:
        metrics: By name.
        as_set: The set is only compared with as a whole (a reference): metrics that need pairs do not read
            it.
    """

    def __init__(self, metrics: Metrics, *, as_set: bool = False) -> None:
        self._metrics, self._as_set = metrics, as_set
        self._names = _readers(metrics, as_set)
        self._found: dict[str, list[Tensor] | NoScore] = {name: [] for name in self._names.values()}
        self._units: list[Tensor | None] = []

    def add(self, view: View, units: Tensor | None) -> None:
        """One more batch, and which unit (shot) each of its clips is from, int64 [B]; None: unknown."""
        self.extend(read(self._metrics, view, as_set=self._as_set), units)

    def extend(self, numbers: Numbers, units: Tensor | None) -> None:
        """:meth:`add` of a batch that :func:`read` has read."""
        for name, parts in self._found.items():
            if isinstance(parts, list):
                value = numbers[name]
                if isinstance(value, NoScore):
                    self._found[name] = value
                else:
                    parts.append(value)
        self._units.append(units)

    @property
    def units(self) -> Tensor | None:
        """Of all clips, int64 [N]; None where they are unknown of any."""
        known = [units for units in self._units if units is not None]
        return torch.cat(known) if len(known) == len(self._units) else None

    def sample(self, metric: Metric, draws: int = 1) -> Sample:
        """What ``metric`` scores.

        Raises:
            NoScore: these clips are not what it is made for.
        """
        found = self._found[self._names[metric.reads]]
        if isinstance(found, NoScore):
            raise found
        return Sample(torch.cat(found), self.units, draws)


def score(
    metrics: Metrics, sets: Mapping[str, Readings], reference: Readings | None, draws: int = 1
) -> dict[str, dict[str, Score]]:
    """Score of every set under every metric: who -> metric -> score, all on the same replicas.

    Args:
        sets: Of one size, clip n of each under the condition of real clip n.
        reference: Other real clips; None where no metric needs one.
        draws: Equal parts that the sets consist of.
    """
    first = next(iter(sets.values()))
    known = [r.units for r in (*sets.values(), *([] if reference is None else [reference]))]
    total = 1 + max((int(u.max()) for u in known if u is not None), default=0)
    resampling = Resampling(first.units, total)
    found: dict[str, dict[str, Score]] = {who: {} for who in sets}
    for name, metric in metrics.items():
        try:
            there = reference.sample(metric) if reference is not None and metric.against is not None else None
            prepared = metric.prepare(there)
        except NoScore as error:
            for who in sets:
                found[who][name] = Score(None, reason=str(error))
            continue
        for who, readings in sets.items():
            parts = []
            try:
                parts = [prepared(part) for part in readings.sample(metric, draws).parts()]
            except NoScore as error:
                found[who][name] = Score(None, reason=str(error))
                continue
            found[who][name] = resampling.score(
                parts, centred=metric.centred, most=metric.replicas, limits=metric.limits
            )
    return found


def differences(metrics: Metrics, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Score]]:
    """``a-b`` -> metric -> paired difference a - b of every two candidates. Where a value should be near to
    one, it is the difference of how far they are from it."""
    return {
        f"{a}-{b}": {
            name: _difference(metric, scores[a][name], scores[b][name]) for name, metric in metrics.items()
        }
        for a in scores
        for b in scores
        if a != b
    }


def _difference(metric: Metric, a: Score, b: Score) -> Score:
    return difference(a, b, metric.error) if metric.direction == "one" else difference(a, b)


def document(
    metrics: Metrics,
    sets: Mapping[str, Readings],
    real: Readings,
    reference: Readings | None,
    draws: int = 1,
    replicas: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """``metrics``, ``floor``, ``differences`` and ``about`` of a report, for JSON.

    Args:
        sets: Of each candidate, see :func:`score`.
        real: The real clips that the conditions came from: their score against ``reference`` is the floor.
        replicas: Filled with the scores' replicas by ``who.metric``, fp64 [replicas]; they tell differences
            to another report on the same clips.
    """
    scored = score(metrics, {**sets, _REAL: real}, reference, draws)
    floor = {name: s for name, s in scored.pop(_REAL).items() if metrics[name].against is not None}
    apart = differences(metrics, scored)
    found: dict[str, Any] = {
        "metrics": {who: _flat(of_metric) for who, of_metric in scored.items()},
        "floor": _flat(floor),
        "differences": {
            pair: {name: s.document() for name, s in of_metric.items()} for pair, of_metric in apart.items()
        },
        "about": {name: about(metric) for name, metric in metrics.items()},
    }
    if replicas is not None:
        for who, of_metric in scored.items():
            kept = {f"{who}.{name}": s.replicas for name, s in of_metric.items()}
            replicas |= {key: value for key, value in kept.items() if value is not None}
    for name, metric in metrics.items():
        if metric.detail is not None:
            for who, readings in sets.items():
                found["metrics"][who].setdefault("details", {})[name] = _detail(metric, readings, draws)
    return found


_REAL = "real clips"  # no candidate has a space in its name


def about(metric: Metric) -> dict[str, str]:
    """What a reader of numbers has to know."""
    return {key: getattr(metric, key) for key in ("title", "direction", "unit", "source")}


def _flat(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Values under the metrics' names; intervals, draws, and reasons for what there is not beside them."""
    found: dict[str, Any] = {name: score.value for name, score in scores.items()}
    found["intervals"] = {n: None if s.low is None else [s.low, s.high] for n, s in scores.items()}
    found["draws"] = {name: list(score.draws) for name, score in scores.items()}
    found["reasons"] = {
        name if score.value is None else f"intervals.{name}": score.reason
        for name, score in scores.items()
        if score.reason is not None
    }
    return found


def _detail(metric: Metric, readings: Readings, draws: int) -> list[float] | None:
    assert metric.detail is not None
    try:
        return metric.detail(readings.sample(metric, draws))
    except NoScore:
        return None


def load(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of these names, in this order.

    Raises:
        ValueError: one is unknown.
    """
    return {name: find(name) for name in names}
