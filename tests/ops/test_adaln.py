from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import registry
from tests.ops.layouts import PLACES, swapped
from tests.ops.modulation import (
    MIXES,
    assert_a_nan_stays_in_its_row,
    assert_mixed_dtypes_as_good_as_torch,
    tokens,
)
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.tuples(
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.integers(0, 70),  # chunks of rows are 32: none, one and several
    st.integers(8, 37),  # fewer channels can all lie close together, which no fp32 survives
).map(lambda s: (*s[0], s[1], s[2]))


def test_reference_is_the_formula():
    x, y, (gate, shift, scale) = tokens((2, 3, 4, 6))
    x, y, gate, shift, scale = (t.double() for t in (x, y, gate, shift, scale))
    per_token = [t[:, :, None, :] for t in (gate, shift, scale)]
    summed = x + per_token[0] * y
    mean = summed.mean(-1, keepdim=True)
    variance = ((summed - mean) ** 2).mean(-1, keepdim=True)
    expected = (summed - mean) / torch.sqrt(variance + 1e-6) * (1 + per_token[2]) + per_token[1]
    x_new, h = ops.gated_residual_adaln(x, y, gate, shift, scale)
    torch.testing.assert_close(x_new, summed, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=1e-12)
    alone = ops.adaln_modulate(x_new, shift, scale)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
def test_modulation_may_be_shaped_to_broadcast_over_frames(backend: str):
    """x [B, T, H, W, D] with [B, T, 1, 1, D], as Cosmos has them: results and gradients in those shapes."""
    x, y, _ = tokens((2, 3, 4, 5, 8))
    modulation = [t[:, :, None] for t in tokens((2, 3, 1, 1, 8), 1)[2]]
    leaves = [t.requires_grad_() for t in (x, y, *modulation)]
    gate, shift, scale = leaves[2:]
    x_new = x + gate * y
    want = torch.nn.functional.layer_norm(x_new, (8,), eps=1e-6) * (1 + scale) + shift
    alone = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    got = ops.gated_residual_adaln(*leaves, backend=backend)
    torch.testing.assert_close(got, (x_new, want), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ops.adaln_modulate(x, shift, scale, backend=backend), alone, rtol=1e-5, atol=1e-5
    )
    grads = [torch.autograd.grad([h.square().sum(), r.sum()], leaves) for r, h in (got, (x_new, want))]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="shift must be"):
        ops.adaln_modulate(x, shift[:, :, 0, 0], scale, backend=backend)


def test_half_precision_computes_in_fp32():
    x, y, modulation = tokens((2, 5, 64))
    half = [t.bfloat16() for t in (x, y, *modulation)]
    x_new, h = ops.gated_residual_adaln(*half)
    assert x_new.dtype == h.dtype == torch.bfloat16
    exact_sum, exact = ops.gated_residual_adaln(*[t.double() for t in half])
    assert torch.equal(x_new, exact_sum.bfloat16())
    # One rounding of the residual and one of the result, nothing worse.
    assert (h - exact).abs().max() <= 2 * 2**-8 * exact.abs().max()


@pytest.mark.compiled
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000), layout=st.sampled_from(PLACES))
@example((3, 1, 4, 8), torch.float32, 0, swapped)
def test_cpu_modulate(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: Callable[[Tensor], Tensor]
):
    def case(seed: int) -> Case:
        x, y, (_, shift, scale) = tokens(shape, seed)
        return ops.adaln_modulate, tuple(map(layout, (x, shift, scale))), (layout(y),)

    assert_as_good_as_torch(draws(case, seed), dtype=dtype)


@pytest.mark.compiled
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000), layout=st.sampled_from(PLACES))
@example((3, 1, 4, 8), torch.float32, 0, swapped)
def test_cpu_gated(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: Callable[[Tensor], Tensor]):
    def case(seed: int) -> Case:
        x, y, modulation = tokens(shape, 2 * seed)
        grads = tuple(map(layout, tokens(shape, 2 * seed + 1)[:2]))
        return ops.gated_residual_adaln, tuple(map(layout, (x, y, *modulation))), grads

    assert_as_good_as_torch(draws(case, seed), dtype=dtype)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
# The last two exceed what is kept in cache: results are streamed unless rows start anywhere.
@pytest.mark.parametrize(
    "shape", [(16, 48, 192), (2, 3, 70, 96), (1, 130, 1023), (1, 1030, 4099), (1, 1030, 4104)]
)
def test_cpu_at_the_sizes_of_networks(shape: tuple[int, ...], dtype: torch.dtype):
    x, y, (gate, shift, scale) = tokens(shape)
    assert_as_good_as_torch([(ops.adaln_modulate, (x, shift, scale), (y,))], dtype=dtype)
    grads = tokens(shape, 1)[:2]
    gated = ops.gated_residual_adaln, (x, y, gate, shift, scale), grads
    assert_as_good_as_torch([gated], dtype=dtype)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [1e4, -3e4])
def test_cpu_statistics_do_not_cancel(first: float, dtype: torch.dtype):
    """Sums are taken of what elements are away from the first ones, which tell nothing here."""
    x, y, (gate, shift, scale) = tokens((2, 5, 400))
    x = x + 20.0
    x[:, :, :32] = first
    x[:, 1] = first  # nothing but rounding is left of the variance
    assert_as_good_as_torch([(ops.adaln_modulate, (x, shift, scale), (y,))], dtype=dtype)
    gated = ops.gated_residual_adaln, (x, y, torch.zeros_like(gate), shift, scale), (y, y)
    assert_as_good_as_torch([gated], dtype=dtype)


@pytest.mark.compiled
def test_cpu_one_channel_normalises_to_the_shift():
    x, _, (_, shift, scale) = tokens((2, 3, 1))
    out = ops.adaln_modulate(x, shift, scale, backend="cpu")
    torch.testing.assert_close(out, shift[:, None].expand_as(out))


@pytest.mark.compiled
def test_cpu_without_a_channel():
    x, y, modulation = tokens((2, 3, 0))
    assert ops.adaln_modulate(x, *modulation[1:], backend="cpu").shape == x.shape
    assert ops.gated_residual_adaln(x, y, *modulation, backend="cpu")[1].shape == x.shape


@pytest.mark.compiled
@pytest.mark.parametrize("output", [0, 1])
def test_cpu_gated_with_one_output_unused(output: int):
    x, y, modulation = tokens((2, 5, 16))

    def one(*args: Tensor, backend: str) -> Tensor:
        return ops.gated_residual_adaln(*args, backend=backend)[output]

    leaves = [t.requires_grad_() for t in (x, y, *modulation)]
    got = torch.autograd.grad(one(*leaves, backend="cpu").sum(), leaves, allow_unused=True)
    want = torch.autograd.grad(one(*leaves, backend="reference").sum(), leaves, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:  # what the output does not depend on
            assert a is b
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.compiled
def test_cpu_reads_slices_without_being_told():
    x, y, _ = tokens((2, 3, 8, 12))
    wide = torch.randn(2, 3, 36)
    chunks = wide.chunk(3, dim=-1)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    every_other = torch.randn(2, 3, 24)[..., ::2]
    for gate, shift, scale in (chunks, (every_other,) * 3, (torch.randn(1, 1, 12).expand(2, 3, 12),) * 3):
        got = ops.gated_residual_adaln(turned, y, gate, shift, scale, backend="cpu")
        want = ops.gated_residual_adaln(x, y, gate, shift, scale, backend="reference")
        torch.testing.assert_close(got, want)


@pytest.mark.compiled
def test_cpu_is_bit_equal_for_any_number_of_threads():
    x, y, modulation = tokens((3, 200, 192))
    leaves = [t.requires_grad_() for t in (x, y, *modulation)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x_new, h = ops.gated_residual_adaln(*leaves, backend="cpu")
            results.append([x_new, h, *torch.autograd.grad((x_new * h).sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.compiled
def test_cpu_shows_a_nan_instead_of_hiding_it():
    assert_a_nan_stays_in_its_row("cpu")


@pytest.mark.compiled
def test_cpu_refuses_a_second_derivative():
    x, _, (_, shift, scale) = tokens((1, 4, 8))
    x.requires_grad_()
    out = ops.adaln_modulate(x, shift, scale, backend="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(4, 8)}, "x must be"),
        ({"x": torch.zeros(2, 4, 8, dtype=torch.int64)}, "x must be a floating-point"),
        ({"y": torch.zeros(2, 4, 7)}, "y must be"),
        ({"gate": torch.zeros(2, 3, 8)}, "gate must be"),
        ({"shift": torch.zeros(3, 8)}, "shift must be"),
        ({"scale": torch.zeros(2, 9)}, "scale must be"),
        ({"scale": torch.zeros(2, 8, device="meta")}, "scale is on meta"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Tensor], named: str):
    good = {"x": torch.zeros(2, 4, 8), "y": torch.zeros(2, 4, 8)}
    good |= {name: torch.zeros(2, 8) for name in ("gate", "shift", "scale")}
    with pytest.raises(ValueError, match=named):
        ops.gated_residual_adaln(**{**good, **change})


BROADCAST: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((2, 5, 8), (2, 1, 8)),
    ((2, 5, 8), (1, 1, 8)),
    ((2, 5, 8), (1, 8)),
    ((2, 5, 8), (8,)),
    ((2, 5, 8), (2, 5, 8)),  # a row for every token
    ((2, 5, 8), (1, 5, 8)),
    ((2, 3, 5, 8), (2, 3, 1, 8)),
    ((2, 3, 5, 8), (1, 3, 8)),
    ((2, 3, 5, 8), (2, 1, 8)),
    ((2, 3, 5, 8), (2, 1, 1, 8)),
    ((2, 3, 5, 8), (1, 8)),
    ((2, 3, 5, 8), (2, 3, 5, 8)),
    ((2, 3, 4, 5, 8), (2, 3, 1, 1, 8)),
    ((2, 3, 4, 5, 8), (1, 3, 1, 1, 8)),
    ((2, 3, 4, 5, 8), (1, 1, 1, 1, 8)),
    ((2, 3, 4, 5, 8), (2, 3, 4, 1, 8)),
    ((2, 3, 4, 5, 8), (2, 1, 1, 5, 8)),
    ((2, 3, 4, 5, 8), (8,)),
]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
@pytest.mark.parametrize(("shape", "rows"), BROADCAST, ids=str)
def test_modulation_is_broadcast_as_torch_would(shape: tuple[int, ...], rows: tuple[int, ...], backend: str):
    """Of the forms with an axis less than x, those that torch would take for something else are per sample or
    frame."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=draw).requires_grad_() for _ in range(2))
    shift, scale = (torch.randn(rows, generator=draw).requires_grad_() for _ in range(2))
    gate = torch.randn(shape[-1:], generator=draw).requires_grad_()  # beside other forms
    as_x = rows if len(rows) != len(shape) - 1 else (*rows[:-1], 1, rows[-1])

    def plain(x: Tensor) -> Tensor:
        normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
        return normed * (1 + scale.reshape(as_x)) + shift.reshape(as_x)

    x_new, h = ops.gated_residual_adaln(x, y, gate, shift, scale, backend=backend)
    for got, want, leaves in (
        ((ops.adaln_modulate(x, shift, scale, backend=backend),), (plain(x),), (x, shift, scale)),
        ((x_new, h), (x + gate * y, plain(x + gate * y)), (x, y, gate, shift, scale)),
    ):
        torch.testing.assert_close(got, want)
        loss = [sum(r.square().sum() for r in results) for results in (got, want)]
        grads = [torch.autograd.grad(one, leaves) for one in loss]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((2, 5, 8), (5, 8)), ((2, 3, 5, 8), (3, 8)), ((2, 5, 8), (2, 2, 8)), ((2, 5, 8), (2, 1))],
)
def test_modulation_that_does_not_broadcast_is_named(shape: tuple[int, ...], rows: tuple[int, ...]):
    x, m = torch.zeros(shape), torch.zeros(rows)
    with pytest.raises(ValueError, match="shift must be"):
        ops.adaln_modulate(x, m, torch.zeros(8))


@pytest.mark.compiled
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [((2, 3, 37, 75), "layer"), ((2, 37, 160), "rms")])
def test_cpu_mixed_dtypes(shape: tuple[int, ...], mix: tuple[Any, Any, Any], norm: str):
    assert_mixed_dtypes_as_good_as_torch("cpu", shape, mix, norm)


@pytest.mark.compiled
def test_cpu_mixed_dtypes_streamed():
    assert_mixed_dtypes_as_good_as_torch("cpu", (1, 1030, 4096), MIXES[1], "layer")


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 37, 75), (2, 5, 8)])
def test_cpu_root_mean_square(shape: tuple[int, ...], dtype: torch.dtype):
    x, y, (gate, shift, scale) = tokens(shape)
    grads = tokens(shape, 1)[:2]
    alone, both = (partial(f, norm="rms") for f in (ops.adaln_modulate, ops.gated_residual_adaln))
    assert_as_good_as_torch([(alone, (x, shift, scale), (y,))], dtype=dtype)
    assert_as_good_as_torch([(both, (x, y, gate, shift, scale), grads)], dtype=dtype)
    assert_as_good_as_torch([(ops.gated_residual, (x, y, gate), grads[:1])], dtype=dtype)


def test_root_mean_square_is_the_formula():
    x, y, (gate, shift, scale) = tokens((2, 5, 8))
    x, y, gate, shift, scale = (t.double() for t in (x, y, gate, shift, scale))
    x_new, h = ops.gated_residual_adaln(x, y, gate, shift, scale, 1e-3, norm="rms")
    want = x + gate[:, None] * y
    torch.testing.assert_close(ops.gated_residual(x, y, gate), want)
    normed = want / torch.sqrt(want.square().mean(-1, keepdim=True) + 1e-3)
    torch.testing.assert_close((x_new, h), (want, normed * (1 + scale[:, None]) + shift[:, None]))
    assert torch.equal(ops.adaln_modulate(x_new, shift, scale, 1e-3, norm="rms"), h)


@pytest.mark.compiled
def test_what_no_kernel_mixes_the_reference_serves():
    x, y, (gate, shift, scale) = tokens((2, 5, 8))
    for mixed in (
        (x.bfloat16(), y, gate, shift, scale),
        (x.double(), y, gate, shift, scale),
        (x, y.double(), gate, shift, scale),
    ):
        x_new, h = ops.gated_residual_adaln(*mixed)
        assert x_new.dtype == h.dtype == mixed[0].dtype
        with pytest.raises(registry.BackendUnavailable, match=r"mixed dtypes|float64"):
            ops.gated_residual_adaln(*mixed, backend="cpu")
    assert ops.adaln_modulate(x.bfloat16(), shift, scale, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(registry.BackendUnavailable, match="mixed dtypes"):
        ops.gated_residual_adaln(x, y.half(), gate, shift, scale, dtype=torch.bfloat16, backend="cpu")
    for wrong, named in (({"norm": "batch"}, "norm must be"), ({"dtype": torch.int8}, "dtype must be")):
        with pytest.raises(ValueError, match=named):
            ops.adaln_modulate(x, shift, scale, **wrong)
