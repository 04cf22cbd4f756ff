from __future__ import annotations

from typing import Any

import pytest
import torch

from cosmos_distill import ops
from cosmos_distill.ops import registry
from tests.ops.calls import assert_alone_as_together
from tests.ops.modulation import (
    MIXES,
    assert_a_nan_stays_in_its_row,
    assert_mixed_dtypes_as_good_as_torch,
    assert_sums_are_rounded_to_nearest,
    tokens,
)
from tests.ops.tolerance import assert_as_good_as_torch, poisoned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
# Forward takes 4 rows of a group at a time, backward 16: fewer, none, just as many, and more.
@pytest.mark.parametrize("shape", [(2, 2, 3, 70), (2, 0, 8), (1, 16, 64), (1, 18, 257)])
def test_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype):
    x, y, (gate, shift, scale) = tokens(shape)
    grads = tokens(shape, 1)[:2]
    gated = ops.gated_residual_adaln, (x, y, gate, shift, scale), grads
    assert_as_good_as_torch([gated], "triton", dtype)
    assert_as_good_as_torch([(ops.adaln_modulate, (x, shift, scale), grads[:1])], "triton", dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_sums_are_rounded_to_nearest(dtype: torch.dtype):
    assert_sums_are_rounded_to_nearest("triton", dtype)


def test_one_channel_normalises_to_the_shift():
    x, _, (_, shift, scale) = tokens((2, 3, 1))
    out = ops.adaln_modulate(x, shift, scale, backend="triton")
    torch.testing.assert_close(out, shift[:, None].expand_as(out))


@pytest.mark.parametrize("output", [0, 1])
def test_one_output_unused(output: int):
    x, y, modulation = tokens((2, 5, 16))
    leaves = [t.requires_grad_() for t in (x, y, *modulation)]
    results = []
    for backend in ("triton", "reference"):
        one = ops.gated_residual_adaln(*leaves, backend=backend)[output]
        with poisoned():
            grads = torch.autograd.grad(one.square().sum(), leaves, allow_unused=True)
        results.append([torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_modulation_may_be_a_slice():
    x, y, _ = tokens((2, 3, 8, 12))
    chunks = torch.randn(2, 3, 36, generator=torch.Generator().manual_seed(2)).chunk(3, dim=-1)
    got = ops.gated_residual_adaln(x, y, *chunks, backend="triton")
    torch.testing.assert_close(got, ops.gated_residual_adaln(x, y, *chunks, backend="reference"))


def test_rows_of_nan_stay_alone():
    assert_a_nan_stays_in_its_row("triton")


def test_the_interpreter_is_never_picked_for_a_cpu():
    x, _, (_, shift, scale) = tokens((1, 4, 8))
    for operator in registry.OPERATORS:
        assert registry.pick(operator, None, x) != "triton"
    with pytest.raises(registry.BackendUnavailable, match=r"not torch\.float64"):
        ops.adaln_modulate(x.double(), shift, scale, backend="triton")


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [((2, 3, 37), "layer"), ((1, 2, 9, 24), "rms")])
def test_mixed_dtypes(shape: tuple[int, ...], mix: tuple[Any, Any, Any], norm: str):
    assert_mixed_dtypes_as_good_as_torch("triton", shape, mix, norm)


def test_what_is_not_asked_for_is_left_out():
    x, y, rows = tokens((2, 11, 24))
    for operator, tensors in (
        (ops.adaln_modulate, [x, *rows[1:]]),
        (ops.gated_residual, [x, y, rows[0]]),
        (ops.gated_residual_adaln, [x, y, *rows]),
    ):
        assert_alone_as_together(operator, tensors, "triton")
