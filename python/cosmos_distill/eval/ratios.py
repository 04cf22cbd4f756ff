"""Energies of generated clips over those of the real ones."""

from __future__ import annotations

from torch import Tensor

from cosmos_distill.eval.statistics import Undefined


def ratio(energies: Tensor, weights: Tensor) -> float:
    """Energy of clips over that of their real counterparts, ``energies`` [N, 2], clip n taken weights[n] times; 1
    where neither has any.

    Raises:
        Undefined: only the real ones have none.
    """
    found, wanted = (weights @ energies).tolist()
    if wanted:
        return float(found / wanted)
    if found:
        raise Undefined("the real clips have none of this energy, so nothing can be compared with it")
    return 1.0
