"""Attention with log-sum-exp in plain torch, the scores of so many queries at a time that they take no more
than a few hundred megabytes. See fused.py for what the functions take and return.

For heads that no kernel serves, on every device: the matrix products are torch's own, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..library import is_wanted
from ..strides import new_like
from . import reference
from .form import Form
from .fused import lse_like, results_like

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
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = results_like(wanted, q, k, v)
    sums = [x.new_zeros(x.shape, dtype=torch.float32) for x in (dk, dv)]
    wide_k, wide_v = k.float(), v.float()
    for piece in _pieces(q, k):
        # In fp32, so that the sums over pieces are rounded once.
        here, mine, of = (x[:, piece].float() for x in (grad, q, out))
        more = None if grad_lse is None else grad_lse[:, :, piece]
        dq_part, *parts = reference.attention_backward(
            here, more, mine, wide_k, wide_v, of, lse[:, :, piece], scale, wanted
        )
        if is_wanted(wanted, 0):
            dq[:, piece] = dq_part
        for whole, part in zip(sums, parts, strict=True):
            whole += part
    return dq, dk.copy_(sums[0]), dv.copy_(sums[1])


def attention_with_form(q: Tensor, k: Tensor, v: Tensor, scale: float, form: Form) -> tuple[Tensor, Tensor]:
    """The same with masks and whatever else a :class:`.form.Form` has, differentiated by torch: the scores of
    a piece are computed anew for its gradient."""

    def one(piece: slice) -> tuple[Tensor, Tensor]:
        return reference.attention_lse(q[:, piece], k, v, scale, form, piece.start, q.shape[1])

    pieces = list(_pieces(q, k)) or [slice(0, 0)]
    if len(pieces) == 1:
        return one(pieces[0])
    learned = torch.is_grad_enabled()
    parts = [checkpoint(one, piece, use_reentrant=False) if learned else one(piece) for piece in pieces]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)
