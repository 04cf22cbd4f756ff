from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops.attn import triton_tiles
from tests.ops.attending import AXES, assert_nothing_is_attended_to
from tests.ops.calls import assert_alone_as_together
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws, poisoned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(batch: int, queries: int, keys: int, heads: int, size: int, seed: int = 0) -> list[Tensor]:
    """q, k, v, and gradients of the output and of the log-sum-exp."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(batch, n, heads, size, generator=generator) for n in (queries, keys, keys, queries)]
    return [*tokens, torch.randn(batch, heads, queries, generator=generator)]


def with_lse(
    q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    return ops.attention(q, k, v, scale=scale, return_lse=True, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 70, 41, 3, 24),  # neither lengths nor head size fill their tiles of 32 and 16
        (2, 33, 32, 1, 64),  # keys do
        (1, 32, 32, 1, 128),  # everything does
        (1, 0, 5, 1, 16),
        (1, 5, 1, 3, 7),  # all that is left of the gradients of q and k is the log-sum-exp's
    ],
)
def test_forward_and_backward(sizes: tuple[int, int, int, int, int], dtype: torch.dtype):
    def case(seed: int) -> Case:
        q, k, v, *grads = draw(*sizes, seed)
        return with_lse, (q, k, v), grads

    lucky = sizes[2] == 1 and dtype == torch.float32  # two units of 16-bit results are far above any luck
    assert_as_good_as_torch(draws(case) if lucky else [case(0)], "triton", dtype)


def test_more_samples_than_an_axis_takes(monkeypatch: pytest.MonkeyPatch):
    *inputs, grad, grad_lse = draw(2, 70, 41, 3, 24)
    leaves = [t.requires_grad_() for t in inputs]
    results = []
    for most in (65_535, 1):
        monkeypatch.setattr(triton_tiles, "_MOST", most)
        with poisoned():
            both = with_lse(*leaves, "triton")
            results.append([*both, *torch.autograd.grad(both, leaves, [grad, grad_lse])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("scale", [0.3, 0.7, 0.0, -0.7])
def test_any_scale_without_log_sum_exp(scale: float):
    def case(seed: int) -> Case:
        q, k, v, grad, _ = draw(1, 21, 19, 2, 16, seed)
        return partial(ops.attention, scale=scale), (q, k, v), (grad,)

    # How near one draw of so few numbers comes is luck, for torch as for us, and another on every machine.
    assert_as_good_as_torch(draws(case), "triton")


def test_only_the_log_sum_exp_used():
    q, k, v, _, grad_lse = draw(1, 21, 19, 2, 16)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    results = []
    for backend in ("triton", "reference"):
        lse = with_lse(*leaves, backend)[1]
        with poisoned():
            grads = torch.autograd.grad(lse, leaves, grad_lse, allow_unused=True)
        results.append([torch.zeros_like(q) if g is None else g for g in grads[:2]])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("axis", AXES)
def test_nothing_to_attend_to(axis: str):
    assert_nothing_is_attended_to(axis, True, "triton", torch.float32)


@pytest.mark.parametrize("scale", [0.25, 0.7])
def test_keys_that_score_far_below_zero_beside_padding(scale: float):
    """Padded keys are zeros: their share, exp(0 - lse), is infinite for such queries and must not count. And
    scores of some hundreds are rounded more than shares may be: that has to cancel with the log-sum-exp's."""
    q, k, v, *grads = draw(1, 4, 17, 1, 16)
    operator = partial(with_lse, scale=scale)
    assert_as_good_as_torch([(operator, (-8 * q.abs(), 8 * k.abs(), v), grads)], "triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.3, -0.3])
def test_slices_of_a_fused_projection(scale: float, dtype: torch.dtype):
    fused = torch.randn(2, 23, 3, 2, 16, generator=torch.Generator().manual_seed(3))
    *_, grad, grad_lse = draw(2, 23, 23, 2, 16)

    def operator(fused: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return with_lse(*fused.unbind(2), backend, scale)

    assert_as_good_as_torch([(operator, (fused,), (grad, grad_lse))], "triton", dtype)


def test_a_head_too_large_is_named():
    q, k, v, *_ = draw(1, 2, 2, 1, 160)
    with pytest.raises(ValueError, match="q has head size 160"):
        with_lse(q, k, v, "triton")


def test_what_is_not_asked_for_is_left_out():
    assert_alone_as_together(with_lse, draw(1, 9, 5, 2, 16)[:3], "triton")
