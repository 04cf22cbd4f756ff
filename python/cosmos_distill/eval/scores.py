"""From numbers per clip to the scores of the report, with their intervals and the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.eval import canny_f1, frechet
from cosmos_distill.eval.bootstrap import interval, resamples


@dataclass(frozen=True)
class Clips:
    """Numbers per clip of one set of clips."""

    features: Tensor
    """Of :mod:`~cosmos_distill.eval.frechet`, [N, 64]."""
    edges: Tensor
    """Counts of :mod:`~cosmos_distill.eval.canny_f1`, [N, 3]."""
    ssim: Tensor
    """Of :mod:`~cosmos_distill.eval.blur_ssim`, [N]."""

    @classmethod
    def cat(cls, parts: Sequence[Clips]) -> Clips:
        """All clips of ``parts``, in order."""
        return cls(*(torch.cat([getattr(p, n) for p in parts]) for n in ("features", "edges", "ssim")))

    @classmethod
    def features_only(cls, features: Tensor) -> Clips:
        """Clips of which only the distance is asked."""
        return cls(features, torch.zeros(len(features), 3), torch.zeros(len(features)))

    def draws(self, count: int) -> list[Clips]:
        """Cut into ``count`` equal draws."""
        parts = (self.features.chunk(count), self.edges.chunk(count), self.ssim.chunk(count))
        return [Clips(*part) for part in zip(*parts, strict=True)]

    def frechet(self, reference: frechet.Gaussian, weights: Tensor | None = None) -> float:
        """Distance to ``reference``, each clip taken ``weights`` [N] times."""
        return frechet.distance(frechet.gaussian(self.features, weights), reference)

    def canny_f1(self, weights: Tensor | None = None) -> float:
        """Pooled F1."""
        return canny_f1.score(self.edges, weights)

    def blur_ssim(self, weights: Tensor | None = None) -> float:
        """Mean over clips."""
        return float(self.ssim.mean() if weights is None else weights @ self.ssim / weights.sum())


def score(sets: Mapping[str, Clips], real: Clips, reference: Clips, draws: int) -> dict[str, Any]:
    """The ``metrics`` and ``floor`` of the report.

    Args:
        sets: Clips of each contestant, made from the controls of the same real clips in the same order.
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
            "canny_f1": clips.canny_f1(),
            "blur_ssim": clips.blur_ssim(),
            "intervals": {
                "frechet": found["interval"],
                "canny_f1": interval(clips.canny_f1, weights),
                "blur_ssim": interval(clips.blur_ssim, weights),
            },
            "draws": {
                "frechet": found["draws"],
                "canny_f1": [part.canny_f1() for part in parts],
                "blur_ssim": [part.blur_ssim() for part in parts],
            },
        }
    return {"metrics": metrics, "floor": distances(real), "clips": len(real.features)}
