"""csrc/attention.cu and csrc/attention_backward.cu, emulated, through the public operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import registry
from tests.ops.tolerance import assert_as_good_as_torch, poisoned

pytestmark = pytest.mark.usefixtures("emulated_cuda")


def rows(batch: int, length: int, heads: int, dim: int, seed: int) -> Tensor:
    return torch.randn((batch, length, heads, dim), generator=torch.Generator().manual_seed(seed))


def case(
    queries: int, keys: int, dim: int, batch: int = 2, heads: int = 2
) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, and gradients of the output and the log-sum-exp."""
    inputs = [rows(batch, n, heads, dim, seed) for seed, n in enumerate((queries, keys, keys))]
    return inputs, [rows(batch, queries, heads, dim, 3), rows(batch, heads, queries, 1, 4)[..., 0]]


def run(
    inputs: list[Tensor], grads: list[Tensor], backend: str, scale: float | None = None
) -> tuple[Tensor, ...]:
    """Output, log-sum-exp and the three gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = ops.attention(*leaves, scale=scale, return_lse=True, backend=backend)
    return (
        out,
        lse,
        *torch.autograd.grad((out, lse), leaves, (grads[0].to(out.dtype), grads[1].to(lse.dtype))),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("queries", "keys", "dim"),
    [
        (64, 128, 64),  # nothing is missing
        (70, 135, 64),  # a last tile, hardly begun, on both sides; buffers used again
        (33, 130, 128),
        (130, 5, 128),  # fewer keys than a tile
        (1, 1, 48),  # channels that are not there
        (66, 66, 20),  # heads that are not aligned
    ],
)
def test_as_good_as_torch(queries: int, keys: int, dim: int, dtype: torch.dtype):
    inputs, grads = case(queries, keys, dim)

    def operator(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return ops.attention(q, k, v, return_lse=True, backend=backend)

    assert_as_good_as_torch(operator, inputs, grads, "cuda", 2, dtype)
    # The log-sum-exp is fp32 whatever the inputs are.
    inputs = [x.to(dtype) for x in inputs]
    exact = ops.attention(*(x.double() for x in inputs), return_lse=True, backend="reference")[1]
    lse = ops.attention(*inputs, return_lse=True, backend="cuda")[1]
    assert lse.dtype == torch.float32
    assert (lse - exact).abs().max() <= 8 * torch.finfo(torch.float32).eps * max(1, exact.abs().max())


def rounded(inputs: list[Tensor], grads: list[Tensor], scale: float) -> list[Tensor]:
    """What tensor cores can do at best: exact but for probabilities and score gradients, which are factors of
    a product and so of the inputs' dtype, and for the results."""
    dtype = inputs[0].dtype

    def narrow(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    q, k, v, grad = (x.double().transpose(1, 2) for x in (*inputs, grads[0].to(dtype)))
    scores = scale * q @ k.mT
    lse = scores.logsumexp(-1, keepdim=True)
    p = (scores - lse).exp()
    out = narrow(narrow(p) @ v)
    delta = (grad * out).sum(-1, keepdim=True) - grads[1].unsqueeze(-1)
    ds = narrow(p * (grad @ v.mT - delta))
    results = [scale * ds @ k, scale * ds.mT @ q, narrow(p).mT @ grad]
    return [narrow(x).transpose(1, 2) for x in (out, *results)]


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.0, 4.0])
def test_any_scale_and_large_scores(scale: float):
    inputs, grads = case(20, 70, 64, 1)
    inputs = [x.bfloat16() * 4 for x in inputs]
    exact = run([x.double() for x in inputs], [grads[0].bfloat16(), grads[1]], "reference", scale)
    out, lse, *gradients = run(inputs, grads, "cuda", scale)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-5)
    ulp = torch.finfo(torch.bfloat16).eps
    for got, best, want in zip(
        (out, *gradients), rounded(inputs, grads, scale), (exact[0], *exact[2:]), strict=True
    ):
        allowed = 2 * (best - want).abs().max() + 2 * ulp * want.abs().max()
        assert (got - want).abs().max() <= allowed


def test_without_a_gradient_of_the_log_sum_exp():
    inputs, grads = case(40, 72, 64, 1)
    inputs = [x.bfloat16() for x in inputs]
    both = []
    for backend in ("cuda", "reference"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = ops.attention(*leaves, backend=backend)
        both.append(torch.autograd.grad(out, leaves, grads[0].bfloat16()))
    for got, want in zip(*both, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_slices_of_one_tensor_are_read_where_they_are():
    wide = rows(2, 70, 3 * 2, 64, 0).bfloat16()
    sliced = list(wide.chunk(3, 2))
    shifted = [torch.cat([x[..., :1], x], -1)[..., 1:] for x in sliced]  # odd strides: not aligned
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in sliced]
    grads = case(70, 70, 64)[1]
    want = run([x.contiguous() for x in sliced], grads, "cuda")
    for inputs in (sliced, shifted, transposed):
        for got, same in zip(run(inputs, grads, "cuda"), want, strict=True):
            assert torch.equal(got, same)


def test_the_same_bits_every_time():
    inputs, grads = case(130, 70, 64, 1)
    inputs = [x.half() for x in inputs]
    with poisoned():
        first, second = (run(inputs, grads, "cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_nan_is_shown_in_its_own_rows_only():
    inputs, grads = case(6, 9, 64)
    inputs = [x.bfloat16() for x in inputs]
    inputs[0][0, 2, 1, 5] = float("nan")
    out, lse, dq, dk, dv = run(inputs, grads, "cuda")
    for whole, first in ((out, out[0, 2, 1]), (dq, dq[0, 2, 1]), (dk, dk[0, :, 1]), (dv, dv[0, :, 1])):
        assert first.isnan().all() and whole.isnan().sum() == first.numel()
    assert lse[0, 1, 2].isnan() and lse.isnan().sum() == 1


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0)])
def test_nothing_to_attend_to(queries: int, keys: int):
    inputs, grads = case(queries, keys, 64)
    inputs = [x.bfloat16() for x in inputs]
    for got, want in zip(run(inputs, grads, "cuda"), run(inputs, grads, "reference"), strict=True):
        assert torch.equal(got, want)


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="serves heads of up to 128 channels, but q has head size 136"):
        ops.attention(*(x.bfloat16() for x in case(3, 3, 136)[0]), backend="cuda")
    with pytest.raises(registry.BackendUnavailable, match=r"torch\.float32"):
        ops.attention(*case(3, 3, 64)[0], backend="cuda")
