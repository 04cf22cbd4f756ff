"""Attention in plain torch, written out: the [Sq, Sk] scores exist. Serves every device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. With ``lse`` and ``out`` of more keys than these: their share of it."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    g, wq, wk, wv = (x.to(wide) for x in (grad, q, k, v))
    weights = torch.exp(scale * torch.einsum("bqhd,bkhd->bhqk", wq, wk) - lse.unsqueeze(-1))
    rest = torch.einsum("bqhd,bqhd->bhq", g, out.to(wide))
    if grad_lse is not None:
        rest = rest - grad_lse
    scores = scale * weights * (torch.einsum("bqhd,bkhd->bhqk", g, wv) - rest.unsqueeze(-1))
    dq = torch.einsum("bhqk,bkhd->bqhd", scores, wk)
    dk = torch.einsum("bhqk,bqhd->bkhd", scores, wq)
    dv = torch.einsum("bhqk,bqhd->bkhd", weights, g)
    # einsum leaves axes in an order of its own; the operator's results are dense.
    dq, dk, dv = (x.to(q.dtype).contiguous() for x in (dq, dk, dv))
    return dq, dk, dv
