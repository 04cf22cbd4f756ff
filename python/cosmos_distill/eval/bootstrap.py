"""How sure a score is: bootstrap intervals over clips (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

REPLICAS = 200


def resamples(clips: int, replicas: int = REPLICAS, seed: int = 0) -> Tensor:
    """How often each clip is taken in each replica, [replicas, clips]; the same for every score of a
    report, so that scores of the same clips may be compared replica by replica."""
    random = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(random.multinomial(clips, np.full(clips, 1 / clips), size=replicas)).double()


def interval(
    statistic: Callable[[Tensor | None], float], weights: Tensor, *, pivotal: bool = False
) -> tuple[float, float]:
    """95 % interval of ``statistic(weights)``, where ``statistic(None)`` is its value on all clips.

    Args:
        weights: From :func:`resamples`.
        pivotal: Mirror the replicas at the value itself. For statistics that resampling inflates, as it
            does a Fréchet distance: repeated clips make the covariance look narrower than it is.
    """
    values = np.array([statistic(w) for w in weights])
    low, high = np.quantile(values, [0.025, 0.975])
    if pivotal:
        value = statistic(None)
        # A ratio or a distance is not negative; the mirror image of a skewed sample may be.
        low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
    return float(low), float(high)
