"""How sure a score is: bootstrap intervals over clips (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.eval.missing import NoScore

REPLICAS = 200


def resamples(clips: int, replicas: int = REPLICAS, seed: int = 0) -> Tensor:
    """How often each clip is taken in each replica, [replicas, clips]; the same for every score of a
    report, so that scores of the same clips may be compared replica by replica."""
    random = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(random.multinomial(clips, np.full(clips, 1 / clips), size=replicas)).double()


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
