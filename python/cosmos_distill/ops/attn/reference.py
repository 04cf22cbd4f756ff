"""Attention in plain torch, written out: the [Sq, Sk] scores exist. Serves every device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elements import nothing
from ..library import is_wanted


def attention_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output [B, Sq, H, D] and log-sum-exp of the scaled scores [B, H, Sq] (fp32; fp64 for fp64)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide) * scale, k.to(wide))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.to(wide)).to(q.dtype), lse


def attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    wanted: int = 0b111,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, nothing for those without their bit in ``wanted``. With ``lse`` and ``out`` of
    more keys than these: their share of it."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    g, wq, wk, wv = (x.to(wide) for x in (grad, q, k, v))
    weights = torch.exp(scale * torch.einsum("bqhd,bkhd->bhqk", wq, wk) - lse.unsqueeze(-1))
    dq, dk, dv = nothing(q), nothing(k), nothing(v)
    # einsum leaves axes in an order of its own; the operator's results are dense.
    if is_wanted(wanted, 2):
        dv = torch.einsum("bhqk,bqhd->bkhd", weights, g).to(v.dtype).contiguous()
    if not wanted & 0b11:
        return dq, dk, dv
    rest = torch.einsum("bqhd,bqhd->bhq", g, out.to(wide))
    if grad_lse is not None:
        rest = rest - grad_lse
    scores = scale * weights * (torch.einsum("bqhd,bkhd->bhqk", g, wv) - rest.unsqueeze(-1))
    if is_wanted(wanted, 0):
        dq = torch.einsum("bhqk,bkhd->bqhd", scores, wk).to(q.dtype).contiguous()
    if is_wanted(wanted, 1):
        dk = torch.einsum("bhqk,bqhd->bkhd", scores, wq).to(k.dtype).contiguous()
    return dq, dk, dv
