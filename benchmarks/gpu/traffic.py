"""Bytes that our Triton kernels ask memory for, derived from the launches themselves.

The operators run on tensors without storage while their launches are written down instead of made. A kernel
that touches each element of its tensors once moves the sum of their sizes: statistics kept for backward and
partial sums, written by one kernel and read by the next, are among them. A kernel that walks over a tensor
several times is listed in PASSES of its triton.py.

Modulation, weights and tables, which every block reads anew from the cache, count once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.gpu.calls import calls
from benchmarks.gpu.work import Shape

PASSES: dict[tuple[str, str], Callable[[Any], int]] = {}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once: what
the modules of kernels say of theirs."""


@dataclass(frozen=True)
class Traffic:
    """What one operator in one direction launches."""

    moved: int
    """Bytes."""
    once: int
    """Bytes, were caches to serve whatever a launch reads again."""
    launches: int


def traffic(call: Callable[[], object], arch: int) -> Traffic:
    """What ``call``, which runs an operator on ``meta`` tensors, would move on an architecture."""
    from cosmos_distill.ops.launch import record

    with record(arch) as launches:
        call()
    found = [
        (PASSES.get((launch.kernel.__name__, name), lambda _: 1)(launch), value.nbytes)
        for launch in launches
        for name, value in launch.arguments.items()
        if isinstance(value, Tensor)
    ]
    moved = sum(passes * nbytes for passes, nbytes in found)
    return Traffic(moved, sum(nbytes for _, nbytes in found), len(launches))


def traffics(shape: Shape, arch: int) -> dict[tuple[str, str], Traffic]:
    """(operator, "fwd" or "bwd") -> what its Triton kernels move, for the operators that have them."""
    found = {}
    for key, call in calls(shape).items():
        kernels = call.module("triton")
        if kernels is not None:
            PASSES.update(getattr(kernels, "PASSES", {}))
            found[key] = traffic(partial(getattr(kernels, call.function), *call.arguments), arch)
    return found
