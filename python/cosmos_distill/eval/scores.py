"""From numbers per clip to the scores of the report, with their intervals and the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.eval import gaussians
from cosmos_distill.eval.metrics import find
from cosmos_distill.eval.missing import NoScore, attempt
from cosmos_distill.eval.statistics import interval, resamples

REPLICAS = 200
Numbers = Tensor | NoScore
"""Of clips that a metric is not made for, why."""


def numbers(per_clip: Callable[[], Tensor]) -> Numbers:
    """What ``per_clip`` returns, or why it cannot."""
    try:
        return per_clip()
    except NoScore as reason:
        return reason


@dataclass(frozen=True)
class Clips:
    """Numbers per clip of one set of clips."""

    features: Numbers
    """Of :mod:`~cosmos_distill.eval.metrics.random_frechet`, [N, 64]."""
    values: Mapping[str, Numbers] = field(default_factory=dict)
    """Metric -> what it pools, [N, ...]."""

    def __len__(self) -> int:
        return next((len(x) for x in (self.features, *self.values.values()) if isinstance(x, Tensor)), 0)

    @classmethod
    def cat(cls, parts: Sequence[Clips]) -> Clips:
        """All clips of ``parts``, in order."""
        names = parts[0].values
        return cls(
            _cat([part.features for part in parts]),
            {name: _cat([part.values[name] for part in parts]) for name in names},
        )

    def draws(self, count: int) -> list[Clips]:
        """Cut into ``count`` equal draws."""
        values = {name: _chunk(value, count) for name, value in self.values.items()}
        return [
            Clips(features, {name: parts[i] for name, parts in values.items()})
            for i, features in enumerate(_chunk(self.features, count))
        ]

    def gaussian(self, weights: Tensor | None = None) -> gaussians.Gaussian:
        """Of the features, each clip taken ``weights`` [N] times.

        Raises:
            NoScore: there are no features, or one clip alone.
        """
        return gaussians.gaussian(_there(self.features), weights)

    def pooled(self, metric: str, weights: Tensor | None = None) -> float:
        """Score of ``metric``, each clip taken ``weights`` [N] times.

        Raises:
            NoScore: these clips have none.
        """
        pool = find(metric).pool
        assert pool is not None
        return pool(_there(self.values[metric]), weights)

    def frechet(self, reference: gaussians.Gaussian, weights: Tensor | None = None) -> float:
        """Distance to ``reference``, each clip taken ``weights`` [N] times. Raises like :meth:`gaussian`."""
        return gaussians.distance(self.gaussian(weights), reference)


def score(sets: Mapping[str, Clips], real: Clips, reference: Clips, draws: int) -> dict[str, Any]:
    """The ``metrics`` and ``floor`` of the report.

    A score or interval that does not exist is None, and ``reasons`` beside it says why, by metric and by
    ``intervals.<metric>``.

    Args:
        sets: Clips of each candidate, made from the conditions of the same real clips in the same order.
        real: Those real clips themselves: their distance to ``reference`` is the floor, below which
            distances cannot be told apart.
        reference: Other real clips, that distances are measured to.
        draws: Equal parts that ``sets`` consist of; the value of each is reported beside that of all.
    """
    weights = resamples(max(1, len(real)), REPLICAS)
    target = cache(reference.gaussian)

    def value(metric: str, clips: Clips, w: Tensor | None = None) -> float:
        return clips.frechet(target(), w) if metric == "frechet" else clips.pooled(metric, w)

    def summary(clips: Clips, names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"intervals": {}, "draws": {}, "reasons": {}}
        parts, reasons = clips.draws(draws), found["reasons"]
        for name in names:
            found[name] = attempt(partial(value, name, clips), reasons, name)
            found["draws"][name] = [attempt(partial(value, name, part), {}, name) for part in parts]
            between = partial(interval, partial(value, name, clips), weights, centred=name == "frechet")
            known = found[name] is not None
            found["intervals"][name] = attempt(between, reasons, f"intervals.{name}") if known else None
        return found

    floor = summary(real, ["frechet"])
    return {
        "metrics": {who: summary(clips, ["frechet", *clips.values]) for who, clips in sets.items()},
        "floor": {
            "frechet": floor["frechet"],
            "interval": floor["intervals"]["frechet"],
            "draws": floor["draws"]["frechet"],
            "reasons": floor["reasons"],
        },
        "clips": len(real),
    }


def ratio_interval(one: Clips, other: Clips, reference: Clips) -> tuple[float, float]:
    """95 % interval of the ratio of two sets' distances to ``reference``: clip n of both comes from the same
    condition and noise, and is resampled in both at once.

    Raises:
        NoScore: one of the distances, or the ratio, does not exist.
    """
    target = reference.gaussian()

    def centred(clips: Clips) -> Callable[[Tensor | None], float]:
        # Resampling inflates each distance by about the same amount, which would pull their ratio to 1.
        replicas = [clips.frechet(target, w) for w in weights]
        shift = clips.frechet(target) - sum(replicas) / len(replicas)
        return lambda w: max(1e-12, clips.frechet(target, w) + (0.0 if w is None else shift))

    if not other.frechet(target):
        raise NoScore("it would be a ratio to 0")
    weights = resamples(len(one), REPLICAS)
    above, below = centred(one), centred(other)
    return interval(lambda w: above(w) / below(w), weights)


def _there(found: Numbers) -> Tensor:
    if isinstance(found, NoScore):
        raise found
    return found


def _cat(parts: Sequence[Numbers]) -> Numbers:
    missing = next((part for part in parts if isinstance(part, NoScore)), None)
    return torch.cat([_there(part) for part in parts]) if missing is None else missing


def _chunk(found: Numbers, count: int) -> Sequence[Numbers]:
    return [found] * count if isinstance(found, NoScore) else found.chunk(count)
