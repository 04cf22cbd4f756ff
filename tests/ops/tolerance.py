"""The rule that every backend is held to: its error against fp64 is at most twice the error of the same
computation in plain torch at the same precision, plus two units in the last place of the result's scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Operator = Callable[..., Any]


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


def outputs_and_gradients(
    operator: Operator, tensors: Sequence[Tensor], grads: Sequence[Tensor], backend: str, dtype: torch.dtype
) -> list[Tensor]:
    """The operator's outputs and the gradients of all its inputs."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    result = operator(*leaves, backend=backend)
    outputs = result if isinstance(result, tuple) else (result,)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in grads])]


def assert_as_good_as_torch(
    operator: Operator,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
    backend: str = "cpu",
    ulps: int = 2,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Hold ``backend`` in ``dtype`` to the rule; ``operator`` takes the tensors and ``backend=``.

    ``ulps`` above two is for tensors so small that torch's error can be nil by luck.
    """
    tensors, grads = ([t.to(dtype) for t in group] for group in (tensors, grads))
    exact = outputs_and_gradients(operator, tensors, grads, "reference", torch.float64)
    plain = outputs_and_gradients(operator, tensors, grads, "reference", dtype)
    with poisoned():
        ours = outputs_and_gradients(operator, tensors, grads, backend, dtype)
    ulp = torch.finfo(dtype).eps
    for i, (want, theirs, got) in enumerate(zip(exact, plain, ours, strict=True)):
        assert got.shape == want.shape
        if want.numel() == 0:
            continue
        allowed = 2 * (theirs - want).abs().max() + ulps * ulp * want.abs().max()
        error = (got - want).abs().max()
        assert error <= allowed, f"result {i}: error {error:.2e}, allowed {allowed:.2e}"
