"""csrc/attention.cu and csrc/attention_backward.cu, emulated, through the public operator."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import registry
from tests.ops.attending import AXES, assert_nothing_is_attended_to
from tests.ops.calls import assert_alone_as_together
from tests.ops.tolerance import (
    assert_as_good_as_torch,
    assert_within_the_rule,
    outputs_and_gradients,
    poisoned,
)

pytestmark = pytest.mark.usefixtures("emulated_cuda")


def rows(batch: int, length: int, heads: int, dim: int, seed: int) -> Tensor:
    return torch.randn((batch, length, heads, dim), generator=torch.Generator().manual_seed(seed))


def case(
    queries: int, keys: int, dim: int, batch: int = 2, heads: int = 3
) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, and gradients of the output and the log-sum-exp."""
    inputs = [rows(batch, n, heads, dim, seed) for seed, n in enumerate((queries, keys, keys))]
    return inputs, [rows(batch, queries, heads, dim, 3), rows(batch, heads, queries, 1, 4)[..., 0]]


def with_lse(
    q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    return ops.attention(q, k, v, scale=scale, return_lse=True, backend=backend)


def run(inputs: list[Tensor], grads: list[Tensor], backend: str) -> tuple[Tensor, ...]:
    """Output, log-sum-exp and the three gradients."""
    return tuple(outputs_and_gradients((with_lse, inputs, grads), backend, inputs[0].dtype).values())


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
    assert_as_good_as_torch([(with_lse, *case(queries, keys, dim))], "cuda", dtype)


def rounded(inputs: list[Tensor], grads: list[Tensor], scale: float) -> dict[str, Tensor]:
    """What tensor cores can do at best: exact but for probabilities and score gradients, which are factors of
    a product and so of the inputs' dtype, and for the results. The log-sum-exp as torch has it."""
    dtype = inputs[0].dtype
    plain = with_lse(*inputs, "reference", scale)[1]

    def narrow(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    q, k, v, grad = (x.double().transpose(1, 2) for x in (*inputs, grads[0]))
    scores = scale * q @ k.mT
    lse = scores.logsumexp(-1, keepdim=True)
    p = (scores - lse).exp()
    out = narrow(narrow(p) @ v)
    delta = (grad * out).sum(-1, keepdim=True) - grads[1].unsqueeze(-1)
    ds = narrow(p * (grad @ v.mT - delta))
    results = {"output 0": out, "gradient 0": scale * ds @ k, "gradient 1": scale * ds.mT @ q}
    results["gradient 2"] = narrow(p).mT @ grad
    return {name: x.to(dtype).transpose(1, 2) for name, x in results.items()} | {"output 1": plain}


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.0, 4.0])
def test_any_scale_and_large_scores(scale: float):
    inputs, grads = ([x.bfloat16() for x in group] for group in case(20, 70, 64, 1))
    inputs = [4 * x for x in inputs]
    given = partial(with_lse, scale=scale), inputs, grads
    exact = outputs_and_gradients(given, "reference", torch.float64)
    ours = outputs_and_gradients(given, "cuda", torch.bfloat16)
    # Where softmax all but picks a key, a score's gradient is what remains of grad . v less grad . out. There
    # torch's error is no measure, whose out is still fp32: the one that a fused backward reads was rounded.
    assert_within_the_rule([(exact, rounded(inputs, grads, scale), ours)])


def test_without_a_gradient_of_the_log_sum_exp():
    inputs, grads = case(40, 72, 64, 1)
    assert_as_good_as_torch([(ops.attention, inputs, grads[:1])], "cuda", torch.bfloat16)


def test_slices_of_one_tensor_are_read_where_they_are():
    wide = rows(2, 70, 3 * 3, 64, 0).bfloat16()
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


@pytest.mark.parametrize("axis", AXES)
def test_nothing_to_attend_to(axis: str):
    assert_nothing_is_attended_to(axis, True, "cuda", torch.bfloat16)


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="serves heads of up to 128 channels, but q has head size 136"):
        ops.attention(*(x.bfloat16() for x in case(3, 3, 136)[0]), backend="cuda")
    with pytest.raises(registry.BackendUnavailable, match=r"torch\.float32"):
        ops.attention(*case(3, 3, 64)[0], backend="cuda")


def test_what_is_not_asked_for_is_left_out():
    assert_alone_as_together(with_lse, [t.bfloat16() for t in case(9, 5, 16)[0]], "cuda")
