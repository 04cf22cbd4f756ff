"""What every backend's tests of adaptive LayerNorm share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.tolerance import assert_within_the_rule, poisoned


def tokens(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x, y and (gate, shift, scale), with a mean that a careless variance would lose."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * 3 + 5
    y = torch.randn(shape, generator=draw)
    return x, y, [torch.randn(shape[:-2] + shape[-1:], generator=draw) for _ in range(3)]


def assert_sums_are_rounded_to_nearest(backend: str, dtype: torch.dtype) -> None:
    """More than the rule asks: cutting off is at most twice as far off."""
    x, y, modulation = tokens((2, 5, 64))
    inputs = [t.to(dtype) for t in (x, y, *modulation)]
    exact = ops.gated_residual_adaln(*(t.double() for t in inputs), backend="reference")[0]
    assert torch.equal(ops.gated_residual_adaln(*inputs, backend=backend)[0], exact.to(dtype))


def assert_a_nan_stays_in_its_row(backend: str) -> None:
    x, _, (_, shift, scale) = tokens((1, 4, 8))
    x[0, 2, 3] = float("nan")
    out = ops.adaln_modulate(x, shift, scale, backend=backend)
    assert out[0, 2].isnan().all() and out[0, [0, 1, 3]].isfinite().all()


MIXES = [
    (torch.float32, torch.bfloat16, None),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float16, torch.float16),
    (torch.float32, torch.float16, None),
    (torch.float32, torch.float32, torch.bfloat16),
]
"""Dtypes of the residual stream, of the branch beside it, and of what is asked for as the result."""


def assert_mixed_dtypes_as_good_as_torch(
    backend: str, shape: tuple[int, ...], mix: tuple[torch.dtype, torch.dtype, torch.dtype | None], norm: Any
) -> None:
    """All three operators, forward and backward, with modulation in the branch's dtype; the rule is that of
    tolerance.py, what plain torch does being the reference in the same dtypes."""
    x_dtype, y_dtype, dtype = mix
    x, y, rows = tokens(shape)
    grads = tokens(shape, 1)[:2]

    def results(
        operator: Any, given: list[Tensor], back: Sequence[Tensor], backend: str
    ) -> dict[str, Tensor]:
        leaves = [t.detach().requires_grad_() for t in given]
        out = operator(*leaves, backend=backend)
        outs = out if isinstance(out, tuple) else (out,)
        slopes = torch.autograd.grad(outs, leaves, [g.to(o.dtype) for g, o in zip(back, outs, strict=True)])
        found = [t.detach() for t in outs] + list(slopes)
        return {str(i): t for i, t in enumerate(found)}

    narrow_rows = [t.to(y_dtype) for t in rows]
    narrow_grads = [g.to(dtype or x_dtype).to(torch.float32) for g in grads]
    how = {"norm": norm}
    for operator, given, back in (
        (
            partial(ops.gated_residual_adaln, **how),
            [x.to(x_dtype), y.to(y_dtype), *narrow_rows],
            narrow_grads,
        ),
        (partial(ops.adaln_modulate, **how), [x.to(x_dtype), *narrow_rows[1:]], narrow_grads[:1]),
        (ops.gated_residual, [x.to(x_dtype), y.to(y_dtype), narrow_rows[0]], narrow_grads[:1]),
    ):
        typed = operator if operator is ops.gated_residual else partial(operator, dtype=dtype)
        exact = results(operator, [t.double() for t in given], [g.double() for g in back], "reference")
        plain = results(typed, given, back, "reference")
        with poisoned():
            ours = results(typed, given, back, backend)
        assert_within_the_rule([(exact, plain, ours)])
