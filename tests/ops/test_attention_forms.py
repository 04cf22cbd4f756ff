"""Attention with masks, windows, soft caps, packed sequences and grouped queries, against the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import registry
from cosmos_distill.ops.attn import tiled
from tests.ops.tolerance import Case, assert_as_good_as_torch, outputs_and_gradients

B, QUERIES, KEYS, HEADS, DIM = 2, 20, 24, 4, 8
STARTS = torch.tensor([0, 5, 5, 20]), torch.tensor([0, 7, 9, 24])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def qkv(shared: int = 1, batch: int = B) -> list[Tensor]:
    k = draw(batch, KEYS, HEADS // shared, DIM)
    return [draw(batch, QUERIES, HEADS, DIM), k, k.flip(1)]


def some(*shape: int) -> Tensor:
    mask = draw(*shape) > -0.5
    mask[..., 0] = True
    return mask


FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "mask of bool": ({"mask": some(QUERIES, KEYS)}, 1),
    "mask of keys": ({"mask": some(B, 1, 1, KEYS)}, 1),
    "mask that is added": ({"mask": draw(B, HEADS, QUERIES, KEYS)}, 1),
    "causal": ({"causal": True}, 1),
    "window": ({"window": (3, 2)}, 1),
    "window of one side": ({"window": (5, None), "causal": True}, 1),
    "mask and causal": ({"mask": some(HEADS, QUERIES, KEYS), "causal": True}, 1),
    "mask that is added and window": ({"mask": draw(QUERIES, KEYS), "window": 8}, 1),
    "soft cap": ({"softcap": 1.5}, 1),
    "soft cap and causal": ({"softcap": 1.5, "causal": True}, 1),
    "grouped": ({}, 2),
    "grouped, all to one": ({"causal": True}, 4),
    "packed": ({"cu_seqlens": STARTS}, 1),
    "packed and causal": ({"cu_seqlens": STARTS, "causal": True}, 2),
    "packed and window": ({"cu_seqlens": STARTS, "window": (2, 1)}, 1),
    "packed and soft cap": ({"cu_seqlens": STARTS, "softcap": 2.0}, 1),
}


def given(name: str) -> tuple[dict[str, Any], list[Tensor]]:
    options, shared = FORMS[name]
    return options, qkv(shared, 1 if "cu_seqlens" in options else B)


def written_out(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """One query at a time, in Python's words."""
    mask, cap = options.get("mask"), options.get("softcap")
    before, behind = (w, w) if isinstance(w := options.get("window"), int) else w or (None, None)
    starts = options.get("cu_seqlens") or (torch.tensor([0, q.shape[1]]), torch.tensor([0, k.shape[1]]))
    out = torch.zeros_like(q)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), -math.inf, dtype=q.dtype)
    whole = None if mask is None else mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            of = h // (q.shape[2] // k.shape[2])
            ends = [part.tolist() for s in starts for part in (s[:-1], s[1:])]
            for first, last, k_first, k_last in zip(*ends, strict=True):
                for i in range(first, last):
                    place = k_last - (last - i)  # of the key at the query's own place
                    scores, values = [], []
                    for j in range(k_first, k_last):
                        score = (q[b, i, h] * k[b, j, of]).sum() / math.sqrt(q.shape[3])
                        score = score if cap is None else cap * torch.tanh(score / cap)
                        if options.get("causal") and j > place:
                            continue
                        if before is not None and j < place - before:
                            continue
                        if behind is not None and j > place + behind:
                            continue
                        if whole is not None and whole.dtype == torch.bool:
                            if not whole[b, h, i, j]:
                                continue
                        elif whole is not None:
                            score = score + whole[b, h, i, j]
                        scores.append(score)
                        values.append(v[b, j, of])
                    if scores:
                        weights = torch.stack(scores)
                        lse[b, h, i] = weights.logsumexp(0)
                        out[b, i, h] = (weights.softmax(0)[:, None] * torch.stack(values)).sum(0)
    return out, lse


@pytest.mark.parametrize("name", FORMS)
def test_the_reference_is_the_formula(name: str):
    options, tensors = given(name)
    want = written_out(*tensors, **options)
    got = ops.attention(*tensors, **options, return_lse=True, backend="reference")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("lse", "backend"), [(False, None), (False, "tiled"), (True, None)])
def test_as_good_as_torch(name: str, lse: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch):
    """Whoever serves it on a CPU, forward and backward, against fp64; pieces of a few queries."""
    monkeypatch.setattr(tiled, "BYTES", 4 * B * HEADS * KEYS * 7)
    options, tensors = given(name)
    gradients = [draw(*tensors[0].shape, seed=1)]
    if lse:
        gradients.append(draw(*(tensors[0].shape[i] for i in (0, 2, 1)), seed=2))
    operator = partial(ops.attention, **options, return_lse=lse)

    def of(*qkv: Tensor, backend: str | None) -> Any:
        return operator(*qkv, backend=None if backend == "any" else backend)

    case: Case = of, [t.float() for t in tensors], [g.float() for g in gradients]
    if lse or backend:
        assert_as_good_as_torch([case], backend or "any")
        return
    # torch's own kernels, which it answers for.
    exact = outputs_and_gradients((of, tensors, gradients), "reference", torch.float64)
    for name, got in outputs_and_gradients(case, "any", torch.float32).items():
        torch.testing.assert_close(got.double(), exact[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in FORMS if "mask" not in n and n != "grouped"])
def test_flex_attention_is_asked_for_the_same(name: str):
    """Its functions, as plain torch on a CPU; what torch compiles of them is for GPUs."""
    options, tensors = given(name)
    tensors = [t.float() for t in tensors]
    with torch.no_grad():
        got = ops.attention(*tensors, **options, return_lse=True, backend="flex")
        want = ops.attention(*tensors, **options, return_lse=True, backend="reference")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mask that is added", "soft cap and causal", "packed and window", "grouped"]
)
def test_gradients_in_fp64(name: str):
    options, tensors = given(name)
    heads = slice(0, 1) if name != "grouped" else slice(0, 4)
    small = [t[:1, :20, heads if i == 0 else slice(0, 1), :2].clone() for i, t in enumerate(tensors)]
    if "mask" in options:
        options = {"mask": options["mask"][:1, :1, :, :20].clone()}
    if "cu_seqlens" in options:
        options = options | {"cu_seqlens": (STARTS[0], STARTS[0])}
    torch.autograd.gradcheck(
        lambda *x: ops.attention(*x, **options, return_lse=True, backend="reference"),
        [x.requires_grad_() for x in small],
    )


@pytest.mark.parametrize("backend", ["reference", "sdpa", "tiled"])
def test_who_attends_to_nothing_gets_zeros_and_no_gradient(backend: str):
    q, k, v = (t.float().requires_grad_() for t in qkv())
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[3] = False
    out = ops.attention(q, k, v, mask=mask, backend=backend)
    assert not out[:, 3].any()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads) and not grads[0][:, 3].any()
    if backend != "sdpa":
        _, lse = ops.attention(q, k, v, mask=mask, return_lse=True, backend=backend)
        assert (lse[:, :, 3] == -math.inf).all()


@pytest.mark.parametrize("backend", ["reference", "sdpa", "tiled"])
def test_a_nan_is_shown(backend: str):
    q, k, v = (t.float() for t in qkv())
    q[0, 2, 1, 0] = math.nan
    assert ops.attention(q, k, v, causal=True, backend=backend)[0, 2, 1].isnan().all()


def test_a_learned_mask_has_a_gradient():
    q, k, v = (t.float() for t in qkv())
    mask = draw(HEADS, QUERIES, KEYS).float().requires_grad_()
    got, want = (
        torch.autograd.grad(ops.attention(q, k, v, mask=mask, backend=b).square().sum(), mask)[0]
        for b in (None, "reference")
    )
    torch.testing.assert_close(got, want)


def test_packed_sequences_are_as_if_alone():
    q, k, v = (t[:1].float() for t in qkv())
    got = ops.attention(q, k, v, cu_seqlens=STARTS, causal=True)
    for (a, b), (c, d) in zip(
        *(zip(s[:-1].tolist(), s[1:].tolist(), strict=True) for s in STARTS), strict=True
    ):
        if b > a:
            alone = ops.attention(q[:, a:b], k[:, c:d], v[:, c:d], causal=True)
            torch.testing.assert_close(got[:, a:b], alone)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backend": "sdpa", "softcap": 1.0}, "sdpa: it has no soft cap"),
    ({"backend": "sdpa", "causal": True, "return_lse": True}, "sdpa: it has no causal mask"),
    ({"backend": "flex", "mask": some(QUERIES, KEYS)}, "flex: it has no mask"),
    ({"backend": "triton,cuda", "window": 3}, "triton"),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"mask": torch.ones(QUERIES, KEYS, dtype=torch.int32)}, "mask must be a tensor of torch.bool"),
    ({"mask": torch.ones(KEYS, QUERIES, dtype=torch.bool)}, r"mask must broadcast to \[B, H, Sq, Sk\]"),
    ({"mask": torch.ones(QUERIES, KEYS, device="meta")}, "mask is on meta"),
    ({"causal": 1}, "causal must be True or False"),
    ({"window": -1}, "window must be at least 0"),
    ({"window": (1, 2, 3)}, "window must be a number of keys"),
    ({"window": (1.5, 2)}, "window must be of whole numbers"),
    ({"softcap": 0.0}, "softcap must be above 0"),
    ({"softcap": "30"}, "softcap must be a number"),
    ({"cu_seqlens": torch.tensor([0, QUERIES])}, "in a batch of 1"),
]
PACKED_WRONG: list[tuple[Any, str]] = [
    ([0, 20], "cu_seqlens must be int32 or int64"),
    (torch.tensor([0.0, 20.0]), "cu_seqlens must be int32 or int64"),
    (torch.tensor([0, 9, 5, 20]), "cu_seqlens must rise from 0"),
    (torch.tensor([0, 19]), "cu_seqlens must rise from 0 to the length of q, 20"),
    ((torch.tensor([0, 20]), torch.tensor([0, 3, 24])), "as many each"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_a_backend_lacks_is_named(options: dict[str, Any], said: str):
    with pytest.raises(registry.BackendUnavailable, match=said):
        ops.attention(*(t.float() for t in qkv()), **options)


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_errors_name_the_argument(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        ops.attention(*(t.float() for t in qkv()), **options)


@pytest.mark.parametrize(("starts", "said"), PACKED_WRONG)
def test_errors_of_packed_sequences(starts: Any, said: str):
    with pytest.raises(ValueError, match=said):
        ops.attention(*(t[:1].float() for t in qkv()), cu_seqlens=starts)
    with pytest.raises(ValueError, match="mask and cu_seqlens"):
        ops.attention(*(t[:1].float() for t in qkv()), cu_seqlens=STARTS, mask=some(QUERIES, KEYS))


def test_queries_must_share_keys_evenly():
    q, k, _ = (t.float() for t in qkv())
    with pytest.raises(ValueError, match="k must be"):
        ops.attention(q, k[:, :, :3], k[:, :, :3])
    with pytest.raises(ValueError, match="k must be"):
        ops.attention_backward(q, q, k[:, :, :2], k[:, :, :2], q, q[..., 0].transpose(1, 2))


def compiled(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(operator, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    "name", ["mask that is added and window", "packed and causal", "grouped, all to one"]
)
def test_compiles_whole(name: str):
    options, tensors = given(name)
    leaves = [t.float().requires_grad_() for t in tensors]
    run = compiled(lambda *x: ops.attention(*x, **options))
    got, want = run(*leaves), ops.attention(*leaves, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), leaves) for r in (got, want)))


def test_heads_of_256_channels():
    q, k, v = (torch.randn(1, 20, 2, 256, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for options in ({}, {"causal": True}, {"softcap": 5.0}):
        want = ops.attention(q, k, v, **options, backend="reference")
        torch.testing.assert_close(ops.attention(q, k, v, **options), want)
        torch.testing.assert_close(ops.attention(q, k, v, **options, return_lse=True)[0], want)
