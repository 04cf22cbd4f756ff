from __future__ import annotations

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_distill import ops
from cosmos_distill.ops.registry import BackendUnavailable
from tests.ops.attending import AXES, assert_nothing_is_attended_to
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws


def qkv(queries: int = 5, keys: int = 7, dtype: torch.dtype = torch.float64):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 3, 8, generator=draw, dtype=dtype) for n in (queries, keys, keys)]


@pytest.mark.parametrize("scale", [None, 0.3])
def test_backends_agree_forward_and_backward(scale: float | None):
    results = []
    for backend in ("sdpa", "reference"):
        leaves = [t.requires_grad_() for t in qkv()]
        out = ops.attention(*leaves, scale=scale, backend=backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_partial_results_merge_by_their_log_sum_exp():
    q, k, v = qkv()
    parts = [ops.attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 3), slice(3, None))]
    lse = torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0)
    merged = sum(out * torch.exp(one - lse).transpose(1, 2).unsqueeze(-1) for out, one in parts)
    whole, whole_lse = ops.attention(q, k, v, return_lse=True)
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(lse, whole_lse)
    torch.testing.assert_close(whole, ops.attention(q, k, v))


@pytest.mark.parametrize(("backend", "dtype"), [("reference", torch.float64), ("sdpa", torch.float32)])
def test_gradients_over_parts_of_the_keys_add_up_to_the_whole(backend: str, dtype: torch.dtype):
    leaves = [t.to(dtype).requires_grad_() for t in qkv()]
    out, lse = ops.attention(*leaves, scale=0.3, return_lse=True, backend=backend)
    grad = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(out, leaves, grad)
    q, k, v = (t.detach() for t in leaves)
    parts = [
        ops.attention_backward(
            grad, q, k[:, s], v[:, s], out.detach(), lse.detach(), scale=0.3, backend=backend
        )
        for s in (slice(0, 3), slice(3, None))
    ]
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 2e-6}
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected[0], **tolerance)
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts], 1), expected[i], **tolerance)


def gradient_arguments(dtype: torch.dtype) -> dict[str, Tensor]:
    """grad, q, k, v, out and lse of attention to all keys there are."""
    q, k, v = qkv(dtype=dtype)
    out, lse = ops.attention(q, k, v, return_lse=True, backend="reference")
    grad = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return {"grad": grad, "q": q, "k": k, "v": v, "out": out, "lse": lse}


def test_the_gradient_of_the_reference_is_differentiable_in_both_modes():
    """Of a registered operator it is neither: errors name this backend as the way out."""
    given = {name: t[:1, :2, :2] for name, t in gradient_arguments(torch.float64).items()}
    leaves = [t.detach().clone().requires_grad_() for t in given.values()]
    torch.autograd.gradcheck(
        lambda *given: ops.attention_backward(*given, backend="reference"), leaves, check_forward_ad=True
    )


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_gradients_have_the_strides_told_while_tracing(backend: str):
    given = gradient_arguments(torch.float32)
    given["v"] = given["v"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments = given["grad"], None, *list(given.values())[1:], 0.3, 0b111, backend
    real = torch.ops.cosmos_distill.attention_backward(*arguments)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        fake = torch.ops.cosmos_distill.attention_backward(*fakes)
    public = ops.attention_backward(**given, scale=0.3, backend=backend)
    assert all(a.stride() == b.stride() == c.stride() for a, b, c in zip(real, fake, public, strict=True))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_autocast_leaves_gradients_alone(backend: str):
    given = gradient_arguments(torch.float32)
    want = ops.attention_backward(**given, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.attention_backward(**given, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(5, 7, 8), (130, 67, 64), (1, 300, 33)]


def draw(queries: int, keys: int, dim: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, and gradients of the output and of the log-sum-exp."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, 3, dim, generator=generator) for n in (queries, keys, keys))
    grads = [torch.randn(q.shape, generator=generator), torch.randn(2, 3, queries, generator=generator)]
    return [q, k, v], grads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("unused", [None, 0, 1])
def test_sdpa_with_log_sum_exp(unused: int | None, sizes: tuple[int, int, int], dtype: torch.dtype):
    def operator(q: Tensor, k: Tensor, v: Tensor, backend: str):
        scale = 0.8 / math.sqrt(q.shape[-1])
        out, lse = ops.attention(q, k, v, scale=scale, return_lse=True, backend=backend)
        # For 16-bit inputs torch's exponentials may be 20 units off: too far to judge an fp32 result.
        both = out, lse.to(q.dtype)
        return both if unused is None else both[1 - unused]

    def case(seed: int) -> Case:
        tensors, grads = draw(*sizes, seed)
        if unused is not None:
            del grads[unused]
        return operator, tensors, grads

    assert_as_good_as_torch(draws(case), "sdpa", dtype)


@pytest.mark.parametrize("sizes", [(5, 17, 8), *SIZES[1:]])  # keys enough for a vector
def test_sdpa_is_torch_to_the_bit(sizes: tuple[int, int, int]):
    """Under this scale, 64 channels make torch's fused attention itself three times as far off as the same
    written out: its backward compares scores of its own with the log-sum-exp of forward's."""
    tensors, (grad, _) = draw(*sizes)
    leaves = [t.requires_grad_() for t in tensors]
    out, _ = ops.attention(*leaves, scale=0.3, return_lse=True, backend="sdpa")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        want = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in leaves), scale=0.3).transpose(1, 2)
    results = [(x, *torch.autograd.grad(x, leaves, grad)) for x in (out, want)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("backend", ["sdpa", "reference", None])
def test_nothing_to_attend_to(backend: str | None, axis: str, lse: bool, dtype: torch.dtype):
    assert_nothing_is_attended_to(axis, lse, backend, dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("keys", range(1, 21))
def test_a_nan_is_not_hidden(keys: int, lse: bool, dtype: torch.dtype):
    """In a query, a key or a value it is where the formula has it; torch's own kernels for the CPU show zeros
    where fewer keys than a vector takes have no score that is a number."""
    for name in "qkv":
        draw = torch.Generator().manual_seed(0)
        given = {n: torch.randn(1, 5 if n == "q" else keys, 2, 8, generator=draw, dtype=dtype) for n in "qkv"}
        given[name][0, 0, 0, 3] = torch.nan
        got, want = (
            ops.attention(*given.values(), return_lse=True, backend=b)
            if lse
            else (ops.attention(*given.values(), backend=b),)
            for b in (None, "reference")
        )
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a.isnan(), b.isnan()), name


def test_a_compiled_program_may_take_any_number_of_keys():
    """The range would be violated by a graph that asks whether there are few of them."""
    q, k = torch.randn(1, 5, 2, 8), torch.randn(1, 40, 2, 8)
    torch._dynamo.mark_dynamic(k, 1, min=2, max=1000)
    torch._dynamo.reset()
    compiled = torch.compile(ops.attention, backend="aot_eager", fullgraph=True)
    for got, want in zip(*(f(q, k, k, return_lse=True) for f in (compiled, ops.attention)), strict=True):
        torch.testing.assert_close(got, want)


def test_merged_parts_are_attention_over_all_keys():
    """Forward and backward, through the log-sum-exp too, as a ring of ranks needs it."""
    q, k, v = (t.requires_grad_() for t in qkv(6, 11))
    spans = (slice(0, 3), slice(3, 4), slice(4, None))
    parts = [ops.attention(q, k[:, s], v[:, s], return_lse=True, backend="reference") for s in spans]
    merged = ops.merge_attention(*zip(*parts, strict=True))
    whole = ops.attention(q, k, v, return_lse=True, backend="reference")
    weight = torch.randn(whole[0].shape, dtype=torch.float64)
    for a, b in zip(merged, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad((out * weight).sum() + lse.square().sum(), (q, k, v))
        for out, lse in (merged, whole)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_merging_survives_scores_of_any_size_and_keeps_the_dtype():
    outs = [torch.full((1, 2, 1, 4), float(i)) for i in range(3)]
    lses = [
        torch.tensor([[[1000.0, -1000.0]]]),
        torch.tensor([[[999.0, -math.inf]]]),
        torch.full((1, 1, 2), -math.inf),
    ]
    out, lse = ops.merge_attention([o.bfloat16() for o in outs], lses)
    share = 1 / (1 + math.e)
    torch.testing.assert_close(out[0, :, 0, 0].float(), torch.tensor([share, 0.0]), rtol=1e-2, atol=0)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(lse[0, 0], torch.tensor([1000.0 + math.log1p(1 / math.e), -1000.0]))
    with pytest.raises(ValueError, match="as many"):
        ops.merge_attention(outs, lses[:2])
    with pytest.raises(ValueError, match=r"lses\[1\] must be"):
        ops.merge_attention(outs, [lses[0], lses[1][..., :1], lses[2]])
    with pytest.raises(ValueError, match=r"outs\[2\] must be"):
        ops.merge_attention([*outs[:2], outs[2][:, :1]], lses)


def test_sdpa_does_not_pretend_to_return_the_log_sum_exp_in_fp64():
    with pytest.raises(BackendUnavailable, match="sdpa"):
        ops.attention(*qkv(), return_lse=True, backend="sdpa")


def test_errors_name_the_argument():
    q, k, v = qkv()
    for message, arguments in (
        ("q must be", (q[0], k, v)),
        ("k must be", (q, k[..., :4], v)),
        ("v must have", (q, k, v[:, :2])),
        ("v must be a tensor of torch.float64", (q, k, v.float())),
    ):
        with pytest.raises(ValueError, match=message):
            ops.attention(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [1, 1000, 1 << 30])
def test_tiled(at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Of heads larger than any kernel takes, in pieces of one query, of some, and of all."""
    tiled = importlib.import_module("cosmos_distill.ops.attn.tiled")
    monkeypatch.setattr(tiled, "BYTES", at_once)

    def operator(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return ops.attention(q, k, v, return_lse=True, backend=backend)

    assert_as_good_as_torch(draws(lambda seed: (operator, *draw(9, 7, 136, seed))), "tiled", dtype)


def test_tiled_holds_the_scores_of_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch):
    tiled = importlib.import_module("cosmos_distill.ops.attn.tiled")
    held: list[int] = []
    whole = tiled.reference.attention_lse
    monkeypatch.setattr(tiled, "BYTES", 4 * 2 * 3 * 50 * 16)
    monkeypatch.setattr(
        tiled.reference, "attention_lse", lambda q, *rest: held.append(q.shape[1]) or whole(q, *rest)
    )
    q = torch.randn(2, 50, 3, 200)
    out, lse = ops.attention(q, q, q, return_lse=True, backend="tiled")
    assert held == [16, 16, 16, 2]
    want = ops.attention(q, q, q, return_lse=True, backend="sdpa")
    torch.testing.assert_close((out, lse), want)


@pytest.mark.parametrize("axis", AXES)
def test_tiled_has_nothing_to_attend_to(axis: str):
    assert_nothing_is_attended_to(axis, True, "tiled", torch.float32)
