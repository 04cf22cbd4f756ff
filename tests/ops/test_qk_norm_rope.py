from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cosmos_distill import ops
from tests.ops.layouts import PLACES, swapped
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def heads(batch: int, length: int, count: int, dim: int, tables: int, seed: int = 0):
    """q, k, their weights, and tables with that many axes (0: none).

    Channels keep away from zero: of few, the mean square would come near it, and divides the gradient.
    """
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, length, count, dim, generator=draw) for _ in range(2))
    q, k = (x + x.sign() for x in (q, k))
    weights = [torch.randn(dim, generator=draw) for _ in range(2)]
    if tables == 0:
        return q, k, weights, (None, None)
    shape = (length, dim) if tables == 2 else (batch, length, dim)
    return q, k, weights, tuple(torch.randn(shape, generator=draw) for _ in range(2))


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [3, 33])
def test_cpu_normalises_heads_of_odd_size(dim: int, dtype: torch.dtype):
    """Only the rotation needs pairs of channels."""
    q, k, weights, _ = heads(2, 7, 3, dim, 0)
    assert_as_good_as_torch([(ops.qk_norm_rope, (q, k, *weights), (k, q))], dtype=dtype)


def test_reference_rotates_by_the_angle():
    angle = torch.rand(5, 3, dtype=torch.float64) * 2 * math.pi
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    one = torch.ones(6, dtype=torch.float64)
    both = torch.cat((angle, angle), dim=-1)
    out, _ = ops.qk_norm_rope(x, x, one, one, both.cos(), both.sin())
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    turned = torch.view_as_complex(torch.stack(normed.chunk(2, -1), -1)) * torch.polar(
        torch.ones_like(angle), angle
    ).unsqueeze(1)
    torch.testing.assert_close(out, torch.cat((turned.real, turned.imag), -1))


def test_reference_turns_neighbours_by_the_angle():
    angle = torch.rand(5, 3, dtype=torch.float64) * 2 * math.pi
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    one = torch.ones(6, dtype=torch.float64)
    both = angle.repeat_interleave(2, dim=-1)
    out, _ = ops.qk_norm_rope(x, x, one, one, both.cos(), both.sin(), interleaved=True)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    turned = torch.view_as_complex(normed.unflatten(-1, (3, 2))) * torch.polar(
        torch.ones_like(angle), angle
    ).unsqueeze(1)
    torch.testing.assert_close(out, torch.view_as_real(turned).flatten(-2))


@pytest.mark.compiled
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 40),
    count=st.integers(1, 5),
    half=st.integers(1, 19),
    tables=st.sampled_from([0, 2, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
    layout=st.sampled_from(PLACES),
    interleaved=st.booleans(),
)
@example(3, 1, 2, 4, 2, torch.float32, 0, swapped, False)
def test_cpu(
    batch: int,
    length: int,
    count: int,
    half: int,
    tables: int,
    dtype: torch.dtype,
    seed: int,
    layout: Callable[[Tensor], Tensor],
    interleaved: bool,
):
    def case(seed: int) -> Case:
        q, k, weights, (cos, sin) = heads(batch, length, count, 2 * half, tables, 2 * seed)
        q, k = layout(q), layout(k)

        def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str):
            return ops.qk_norm_rope(
                q, k, q_weight, k_weight, cos, sin, interleaved=interleaved, backend=backend
            )

        return operator, (q, k, *weights), heads(batch, length, count, 2 * half, 0, 2 * seed + 1)[:2]

    assert_as_good_as_torch(draws(case, seed), dtype=dtype)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "interleaved"),
    [
        ((16, 48, 6, 32), False),
        ((1, 130, 4, 128), False),
        ((1, 1030, 33, 128), False),
        ((1, 130, 4, 128), True),
        ((1, 1030, 33, 128), True),  # streamed
    ],
)
def test_cpu_at_the_sizes_of_networks(
    shape: tuple[int, int, int, int], interleaved: bool, dtype: torch.dtype
):
    q, k, weights, (cos, sin) = heads(*shape, tables=2)

    def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str):
        return ops.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, interleaved=interleaved, backend=backend)

    grads = heads(*shape, tables=0, seed=1)[:2]
    assert_as_good_as_torch([(operator, (q, k, *weights), grads)], dtype=dtype)


@pytest.mark.compiled
def test_cpu_reads_slices_of_a_fused_projection():
    fused = torch.randn(2, 7, 3 * 4 * 8)
    q, k, _ = (part.unflatten(-1, (4, 8)) for part in fused.chunk(3, dim=-1))
    _, _, (a, b), (cos, sin) = heads(2, 7, 4, 8, 2)
    for table in ((cos, sin), (cos.expand(2, 7, 8), sin.expand(2, 7, 8)), (cos.t().contiguous().t(), sin)):
        got = ops.qk_norm_rope(q, k, a, b, *table, backend="cpu")
        torch.testing.assert_close(got, ops.qk_norm_rope(q, k, a, b, *table, backend="reference"))


@pytest.mark.compiled
def test_cpu_cross_attention_has_two_lengths_and_no_tables():
    q, _, (a, b), _ = heads(2, 7, 4, 8, 0)
    k = torch.randn(2, 3, 4, 8)
    got = ops.qk_norm_rope(q, k, a, b, backend="cpu")
    torch.testing.assert_close(got, ops.qk_norm_rope(q, k, a, b, backend="reference"))


@pytest.mark.compiled
def test_cpu_is_bit_equal_for_any_number_of_threads():
    q, k, weights, tables = heads(4, 100, 6, 32, 2)
    leaves = [t.requires_grad_() for t in (q, k, *weights)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs = ops.qk_norm_rope(*leaves, *tables, backend="cpu")
            results.append([*outs, *torch.autograd.grad((outs[0] * outs[1]).sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_learnable_tables_get_their_gradient():
    q, k, weights, (cos, sin) = heads(1, 3, 2, 4, 2)
    cos.requires_grad_()
    q_out, _ = ops.qk_norm_rope(q, k, *weights, cos, sin)
    assert torch.autograd.grad(q_out.sum(), cos)[0].abs().sum() > 0


def test_errors_name_the_argument():
    q, k, (a, b), (cos, sin) = heads(2, 5, 3, 8, 2)
    for message, arguments in (
        ("q must be", (q[0], k, a, b, cos, sin)),
        ("k_weight must be", (q, k, a, b[:4], cos, sin)),
        ("k must share", (q, k[:1], a, b, cos, sin)),
        ("sin is missing", (q, k, a, b, cos, None)),
        ("cos must be", (q, k, a, b, cos[:4], sin)),
        ("k has length", (q, k[:, :3], a, b, cos, sin)),
        ("even", (q[..., :7], k[..., :7], a[:7], b[:7], cos[:, :7], sin[:, :7])),
    ):
        with pytest.raises(ValueError, match=message):
            ops.qk_norm_rope(*arguments)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
def test_cos_and_sin_are_both_per_sample_or_both_shared(backend: str):
    """Kernels learn from one of them how both lie in memory."""
    q, k, weights, per_token = heads(2, 5, 3, 8, 2)
    per_sample = heads(2, 5, 3, 8, 3)[3]
    for cos, sin in ((per_token[0], per_sample[1]), (per_sample[0], per_token[1])):
        with pytest.raises(ValueError, match="sin must be"):
            ops.qk_norm_rope(q, k, *weights, cos, sin, backend=backend)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
def test_angles_of_the_axes_are_the_tables_of_every_token(backend: str, per_sample: bool, interleaved: bool):
    sizes, counts, batch = (2, 3, 4), (3, 1, 2), 2
    q, k, (a, b), _ = heads(batch, 24, 3, 12, 0)
    angles = [torch.rand(n, c) * 6 for n, c in zip(sizes, counts, strict=True)]
    if per_sample:
        angles[0] = torch.rand(batch, 2, 3) * 6
    rows = torch.empty(batch, 24, 6)
    for sample in range(batch):
        mine = [axis[sample] if axis.dim() == 3 else axis for axis in angles]
        for token, at in enumerate(itertools.product(*map(range, sizes))):
            rows[sample, token] = torch.cat([axis[i] for axis, i in zip(mine, at, strict=True)])
    table = rows.repeat_interleave(2, dim=-1) if interleaved else torch.cat([rows, rows], dim=-1)
    how = {"interleaved": interleaved}
    got = ops.qk_norm_rope(q, k, a, b, angles=tuple(angles), backend=backend, **how)
    want = ops.qk_norm_rope(q, k, a, b, table.cos(), table.sin(), backend="reference", **how)
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="angles span 2 x 3 x 4 tokens"):
        ops.qk_norm_rope(q[:, 1:], k[:, 1:], a, b, angles=tuple(angles))


BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.compiled)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [128, 64, 48, 20, 6])
def test_interleaved_is_the_half_form_of_channels_in_another_order(
    dim: int, dtype: torch.dtype, backend: str
):
    q, k, weights, _ = heads(2, 9, 3, dim, 0)
    angle = torch.rand(9, dim // 2) * 6
    order = torch.arange(dim).unflatten(0, (-1, 2)).t().flatten()  # the even ones, then the odd ones
    leaves = [t.to(dtype).requires_grad_() for t in (q, k)] + [w.requires_grad_() for w in weights]
    apart = [t[..., order] for t in leaves]
    tables = [angle.repeat_interleave(2, dim=-1), torch.cat([angle, angle], dim=-1)]
    got = ops.qk_norm_rope(*leaves, tables[0].cos(), tables[0].sin(), interleaved=True, backend=backend)
    want = ops.qk_norm_rope(*apart, tables[1].cos(), tables[1].sin(), backend=backend)
    grads = [
        torch.autograd.grad(
            outs[0].float().square().sum() + (outs[1].float() * weight[..., place]).sum(), leaves
        )
        for outs, place in ((got, torch.arange(dim)), (want, order))
        for weight in [heads(2, 9, 3, dim, 0, seed=3)[0]]
    ]
    # Sums over a head are added up in another order.
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-4}
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x[..., order], y, **close)
    torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_of_the_other_layout_are_refused(interleaved: bool, per_sample: bool):
    q, k, weights, _ = heads(2, 5, 3, 8, 0)
    angle = torch.rand(*(2,) * per_sample, 5, 4)
    layouts = torch.cat([angle, angle], dim=-1), angle.repeat_interleave(2, dim=-1)
    own, other = (layouts[i ^ interleaved] for i in range(2))
    ops.qk_norm_rope(q, k, *weights, own.cos(), own.sin(), interleaved=interleaved)
    cos, sin = other.cos(), other.sin()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"pass interleaved={not interleaved}"):
            ops.qk_norm_rope(q, k, *weights, cos, sin, interleaved=interleaved)
    ops.qk_norm_rope(q, k, *weights, cos, sin, interleaved=not interleaved)
    # Nothing is told by angles that are all the same, nor by those of every channel's own.
    for told in (torch.ones(5, 8), torch.rand(5, 8)):
        ops.qk_norm_rope(q, k, *weights, told, told, interleaved=interleaved)


def test_tables_are_looked_at_again_once_they_have_changed():
    q, k, weights, _ = heads(1, 5, 3, 8, 0)
    angle = torch.rand(5, 4)
    table = torch.cat([angle, angle], dim=-1)
    ops.qk_norm_rope(q, k, *weights, table, table)
    table.copy_(angle.repeat_interleave(2, dim=-1))
    with pytest.raises(ValueError, match="interleaved=True"):
        ops.qk_norm_rope(q, k, *weights, table, table)


@pytest.mark.compiled
def test_a_compiled_call_turns_neighbours():
    """While tracing there are no numbers to look at."""
    q, k, weights, _ = heads(1, 5, 3, 8, 0)
    table = torch.rand(5, 4).repeat_interleave(2, dim=-1)
    torch._dynamo.reset()
    turned = torch.compile(ops.qk_norm_rope, fullgraph=True, backend="aot_eager")
    got, want = (
        call(q, k, *weights, table.cos(), table.sin(), interleaved=True)
        for call in (turned, ops.qk_norm_rope)
    )
    torch.testing.assert_close(got, want)
