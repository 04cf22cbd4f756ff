"""What every backend's tests of attention share."""

from __future__ import annotations

import torch

from cosmos_distill import ops
from tests.ops.tolerance import outputs_and_gradients, poisoned

AXES = {"samples": 2, "queries": 3, "keys": 5, "heads": 2}


def assert_nothing_is_attended_to(axis: str, lse: bool, backend: str | None, dtype: torch.dtype) -> None:
    """Without samples, queries, keys or heads there are zeros, with a log-sum-exp of -inf, and gradients of
    zero; and the same of keys that are passed around."""
    batch, queries, keys, heads = (AXES | {axis: 0}).values()
    q, k = torch.ones(batch, queries, heads, 8), torch.ones(batch, keys, heads, 8)
    grads = [torch.ones_like(q), torch.ones(batch, heads, queries)]

    def attention(*qkv: torch.Tensor, backend: str | None) -> tuple[torch.Tensor, ...]:
        result = (
            ops.attention(*qkv, return_lse=True, backend=backend)
            if lse
            else ops.attention(*qkv, backend=backend)
        )
        return result if isinstance(result, tuple) else (result,)

    with poisoned():
        got = outputs_and_gradients((attention, (q, k, k), grads[: 1 + lse]), backend, dtype)
    for name, tensor in got.items():
        want = torch.full_like(tensor, -torch.inf) if name == "output 1" else torch.zeros_like(tensor)
        assert torch.equal(tensor, want), name
    assert [tuple(got[f"gradient {i}"].shape) for i in range(3)] == [q.shape, k.shape, k.shape]
    if lse:
        q, k, grad = (t.to(dtype) for t in (q, k, grads[0]))
        parts = ops.attention_backward(grad, q, k, k, q, grads[1], backend=backend)
        assert [p.shape for p in parts] == [q.shape, k.shape, k.shape] and not any(p.any() for p in parts)
