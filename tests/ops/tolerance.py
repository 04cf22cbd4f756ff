"""The rule that every backend is held to: its error against fp64 is at most twice the error of the same
computation in plain torch at the same precision, plus two units in the last place of the result's scale.

A result of a few numbers may come out exact by luck, from either. Its errors are therefore added up over
independent draws, which compares what is to be expected of the two; a large result is its own many draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Operator = Callable[..., Any]
Case = tuple[Operator, Sequence[Tensor], Sequence[Tensor]]
"""An operator that also takes ``backend=``, its tensors, and the gradients of its results."""
Results = Mapping[str, Tensor]

DRAWS = 16
"""Enough for results of a single number: of 7500 cases from hypothesis none broke the rule by luck, where of
single draws up to one in ten did."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh tensors hold NaN: an element that a kernel forgets to write cannot pass for a good one."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def outputs_and_gradients(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The operator's outputs and the gradients of all its inputs, zeros where it has none."""
    operator, tensors, grads = case
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    result = operator(*leaves, backend=backend)
    outputs = result if isinstance(result, tuple) else (result,)
    slopes = torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in grads], materialize_grads=True)
    return {f"output {i}": t.detach() for i, t in enumerate(outputs)} | {
        f"gradient {i}": t for i, t in enumerate(slopes)
    }


def draws(case: Callable[[int], Case], seed: int = 0) -> Iterator[Case]:
    """Independent draws of a case of few numbers; those of different seeds have none in common."""
    return map(case, range(seed * DRAWS, (seed + 1) * DRAWS))


def assert_as_good_as_torch(
    cases: Iterable[Case], backend: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Hold ``backend`` to the rule in ``dtype``, to which the tensors are rounded first."""

    def run(case: Case) -> tuple[Results, Results, Results]:
        operator, *groups = case
        case = operator, *([t.to(dtype) for t in group] for group in groups)
        exact = outputs_and_gradients(case, "reference", torch.float64)
        plain = outputs_and_gradients(case, "reference", dtype)
        with poisoned():
            return exact, plain, outputs_and_gradients(case, backend, dtype)

    assert_within_the_rule(map(run, cases))


def assert_within_the_rule(found: Iterable[tuple[Results, Results, Results]]) -> None:
    """Of every draw: the results in fp64, torch's and ours."""
    errors, allowed = Counter[str](), Counter[str]()
    for exact, plain, ours in found:
        assert exact.keys() == plain.keys() == ours.keys()
        for name, got in ours.items():
            want, theirs = exact[name], plain[name]
            assert got.dtype == theirs.dtype and got.shape == want.shape, name
            if got.numel():
                ulp = torch.finfo(got.dtype).eps * _largest(want)
                errors[name] += _largest(got - want)
                allowed[name] += 2 * _largest(theirs - want) + 2 * ulp
    for name, error in errors.items():
        assert error <= allowed[name], f"{name}: error {error:.2e}, allowed {allowed[name]:.2e}"


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
