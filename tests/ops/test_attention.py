from __future__ import annotations

import pytest
import torch

from cosmos_distill import ops
from cosmos_distill.ops.registry import BackendUnavailable


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


def test_sdpa_does_not_pretend_to_return_the_log_sum_exp():
    with pytest.raises(BackendUnavailable, match="sdpa"):
        ops.attention(*qkv(), return_lse=True, backend="sdpa")


def test_errors_name_the_argument():
    q, k, v = qkv()
    for message, arguments in (
        ("q must be", (q[0], k, v)),
        ("k must be", (q, k[..., :4], v)),
        ("v must have", (q, k, v[:, :2])),
        ("v is torch.float32", (q, k, v.float())),
    ):
        with pytest.raises(ValueError, match=message):
            ops.attention(*arguments)
