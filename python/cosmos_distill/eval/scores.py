"""From numbers per clip to the scores of the report, with their intervals and the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.eval import blur_ssim, canny_f1, frechet, motion
from cosmos_distill.eval.bootstrap import interval, resamples

POOLED: dict[str, Callable[[Tensor, Tensor | None], float]] = {
    "canny_f1": canny_f1.score,
    "blur_ssim": blur_ssim.score,
    "motion": motion.score,
}
"""Metric -> its score of numbers per clip, each clip taken so many times."""


@dataclass(frozen=True)
class Clips:
    """Numbers per clip of one set of clips."""

    features: Tensor
    """Of :mod:`~cosmos_distill.eval.frechet`, [N, 64]."""
    values: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric of :data:`POOLED` -> what it pools, [N, ...]."""

    @classmethod
    def cat(cls, parts: Sequence[Clips]) -> Clips:
        """All clips of ``parts``, in order."""
        names = parts[0].values
        return cls(
            torch.cat([part.features for part in parts]),
            {name: torch.cat([part.values[name] for part in parts]) for name in names},
        )

    def draws(self, count: int) -> list[Clips]:
        """Cut into ``count`` equal draws."""
        values = {name: value.chunk(count) for name, value in self.values.items()}
        return [
            Clips(features, {name: parts[i] for name, parts in values.items()})
            for i, features in enumerate(self.features.chunk(count))
        ]

    def frechet(self, reference: frechet.Gaussian, weights: Tensor | None = None) -> float:
        """Distance to ``reference``, each clip taken ``weights`` [N] times."""
        return frechet.distance(frechet.gaussian(self.features, weights), reference)

    def pooled(self, metric: str, weights: Tensor | None = None) -> float:
        """Score of ``metric``, each clip taken ``weights`` [N] times."""
        return POOLED[metric](self.values[metric], weights)


def score(sets: Mapping[str, Clips], real: Clips, reference: Clips, draws: int) -> dict[str, Any]:
    """The ``metrics`` and ``floor`` of the report.

    Args:
        sets: Clips of each contestant, made from the conditions of the same real clips in the same order.
        real: Those real clips themselves: their distance to ``reference`` is the floor, below which
            distances cannot be told apart.
        reference: Other real clips, that distances are measured to.
        draws: Equal parts that ``sets`` consist of; the value of each is reported beside that of all.
    """
    target = frechet.gaussian(reference.features)
    weights = resamples(len(real.features))

    def distances(clips: Clips) -> dict[str, Any]:
        return {
            "frechet": clips.frechet(target),
            "interval": interval(lambda w: clips.frechet(target, w), weights, centred=True),
            "draws": [part.frechet(target) for part in clips.draws(draws)],
        }

    metrics: dict[str, Any] = {}
    for who, clips in sets.items():
        found = distances(clips)
        parts = clips.draws(draws)
        metrics[who] = {
            "frechet": found["frechet"],
            **{name: clips.pooled(name) for name in clips.values},
            "intervals": {
                "frechet": found["interval"],
                **{name: _interval(clips, name, weights) for name in clips.values},
            },
            "draws": {
                "frechet": found["draws"],
                **{name: [part.pooled(name) for part in parts] for name in clips.values},
            },
        }
    return {"metrics": metrics, "floor": distances(real), "clips": len(real.features)}


def ratio_interval(one: Clips, other: Clips, reference: Clips) -> tuple[float, float]:
    """95 % interval of the ratio of two sets' distances to ``reference``: clip n of both comes from the same
    condition and noise, and is resampled in both at once."""
    target = frechet.gaussian(reference.features)

    def centred(clips: Clips) -> Callable[[Tensor | None], float]:
        # Resampling inflates each distance by about the same amount, which would pull their ratio to 1.
        replicas = [clips.frechet(target, w) for w in weights]
        shift = clips.frechet(target) - sum(replicas) / len(replicas)
        return lambda w: max(1e-12, clips.frechet(target, w) + (0.0 if w is None else shift))

    weights = resamples(len(one.features))
    above, below = centred(one), centred(other)
    return interval(lambda w: above(w) / below(w), weights)


def _interval(clips: Clips, name: str, weights: Tensor) -> tuple[float, float]:
    return interval(lambda w: clips.pooled(name, w), weights)
