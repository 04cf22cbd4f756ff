"""Bytes that our CUDA kernels ask memory for, derived from the launches themselves.

The operators of ops/*/cuda.py run on tensors without storage over the emulated module, which writes launches
down instead of making them. Each tensor has an address, made up where it has no storage, and the arguments of
a launch are searched for these, which tells the tensors that a kernel is given. Then

- a result counts once: one kernel of the operator writes it;
- an input counts once for each launch that it is given to: two kernels that read it move it twice;
- scratch, which is neither, likewise: one kernel writes it, the next one reads it.

What a kernel does otherwise, which launches do not show, is in PASSES of its cuda.py: (kernel, parameter of
the function there) -> how often a launch of it reads that tensor as a whole. tests/ops/cuda/test_traffic.py
counts the accesses of emulated kernels and compares. It speaks of rows that fit into shared memory, as those
of all published networks do.

Modulation, statistics, weights and tables, of which many threads or blocks read the same, count once a
launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.gpu.calls import Addresses, Call, calls
from benchmarks.gpu.cuda_launches import plain_name
from benchmarks.gpu.traffic import Traffic
from benchmarks.gpu.work import Shape

SCRATCH, RESULT = "(scratch)", "(result)"


@dataclass(frozen=True)
class Use:
    """A tensor that a launch is given."""

    name: str
    """The function's parameter, SCRATCH or RESULT."""
    tensor: Tensor
    launch: Any
    passes: int
    """For a result, whoever writes it: 1."""


def uses(call: Call, functions: ModuleType) -> list[Use]:
    """What each launch of ``call`` is given, in order; no kernel runs.

    Args:
        call: on tensors with or without storage.
        functions: the emulated operators, in the place of the compiled ones (``benchmarks.gpu.emulated``).
    """
    module = call.module("cuda")
    function = getattr(module, call.function)
    passes = getattr(module, "PASSES", {})
    results: list[Tensor] = []

    def run() -> None:
        made = function(*call.arguments)
        results.extend(made if isinstance(made, tuple) else (made,))

    with Addresses() as addresses:
        launches = functions.record(run)
    given = inspect.signature(function).bind(*call.arguments).arguments.items()

    def name_of(x: Tensor) -> str:
        if any(x is result for result in results):
            return RESULT
        return next((name for name, value in given if value is x), SCRATCH)

    def found() -> Iterator[Use]:
        for launch in launches:
            kernel = plain_name(launch.kernel).partition("<")[0]
            words = set(launch.words)
            for address, tensor in addresses.tensors.items():
                if address in words:
                    name = name_of(tensor)
                    yield Use(name, tensor, launch, passes.get((kernel, name), lambda _: 1)(launch))

    return list(found())


def traffic(call: Call, functions: ModuleType) -> Traffic:
    """What ``call`` would move."""
    found = uses(call, functions)
    results = {id(use.tensor): use.tensor.nbytes for use in found if use.name == RESULT}
    written = sum(results.values())
    read = [use for use in found if use.name != RESULT and use.passes]
    return Traffic(
        moved=written + sum(use.passes * use.tensor.nbytes for use in read),
        once=written + sum(use.tensor.nbytes for use in read),
        launches=len({id(use.launch) for use in found}),
    )


def traffics(shape: Shape, functions: ModuleType) -> dict[tuple[str, str], Traffic]:
    """(operator, "fwd" or "bwd") -> what its CUDA kernels move, for the operators that have them."""
    return {key: traffic(call, functions) for key, call in calls(shape).items() if call.module("cuda")}
