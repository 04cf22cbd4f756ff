"""From numbers per clip to one score: what several metrics share."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.missing import NoScore


def once(weights: Tensor | None, values: Tensor) -> Tensor:
    """``weights``, or 1 for each clip with ``values`` [N, ...] where they are left out, fp64 [N]."""
    return torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()


def mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Mean over clips with ``values`` [N], each taken ``weights`` [N] times (once if left out)."""
    return float(values.mean() if weights is None else weights @ values / weights.sum())


def ratio(energies: Tensor, weights: Tensor | None = None) -> float:
    """Energy of clips over that of their real counterparts, ``energies`` [N, 2], each clip taken
    ``weights`` [N] times (once if left out).

    Raises:
        NoScore: the real ones have none.
    """
    found, wanted = (once(weights, energies) @ energies).tolist()
    if not wanted:
        raise NoScore("the real clips have none of it")
    return float(found / wanted)
