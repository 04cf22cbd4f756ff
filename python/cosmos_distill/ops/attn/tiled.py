"""Attention with log-sum-exp in plain torch, the scores of so many queries at a time that they take no more
than a few hundred megabytes. See fused.py for what the functions take and return.

For heads that no kernel serves, on every device: the matrix products are torch's own, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..strides import new_like
from . import reference
from .fused import lse_like

BYTES = 256 << 20
"""Of the scores that exist at a time; backward has three times that."""


def _pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Of queries."""
    batch, queries, heads, _ = q.shape
    at_once = max(1, BYTES // max(1, 4 * batch * heads * k.shape[1]))
    for first in range(0, queries, at_once):
        yield slice(first, first + at_once)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = new_like(q), lse_like(q)
    for piece in _pieces(q, k):
        out[:, piece], lse[:, :, piece] = reference.attention_lse(q[:, piece], k, v, scale)
    return out, lse


def attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq = new_like(q)
    dk, dv = (torch.zeros_like(x, dtype=torch.float32, memory_format=torch.contiguous_format) for x in (k, v))
    wide_k, wide_v = k.float(), v.float()
    for piece in _pieces(q, k):
        # In fp32, so that the sums over pieces are rounded once.
        here, mine, of = (x[:, piece].float() for x in (grad, q, out))
        more = None if grad_lse is None else grad_lse[:, :, piece]
        dq[:, piece], dk_part, dv_part = reference.attention_backward(
            here, more, mine, wide_k, wide_v, of, lse[:, :, piece], scale
        )
        dk += dk_part
        dv += dv_part
    return dq, dk.to(k.dtype), dv.to(v.dtype)
