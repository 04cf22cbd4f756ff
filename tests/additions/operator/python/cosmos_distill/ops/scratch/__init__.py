"""A tensor times a number: the smallest operator there can be, for tests/additions."""

from __future__ import annotations

from torch import Tensor

from .. import registry
from . import fused, reference

registry.serve("scratch", scratch_scale=(registry.CPU, registry.REFERENCE))


def scratch_scale(x: Tensor, factor: float, *, backend: str | None = None) -> Tensor:
    """``x * factor``, in the dtype of x."""
    if registry.pick("scratch_scale", backend, x) == "reference":
        return reference.scratch_scale(x, factor)
    return fused.scale(x.contiguous(), factor, "cpu")
