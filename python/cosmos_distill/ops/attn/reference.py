"""Attention in plain torch, written out: the [Sq, Sk] scores exist. Serves every device and dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..elements import nothing
from ..library import is_wanted
from .form import PLAIN, Form


def grouped(x: Tensor, heads: int) -> Tensor:
    """Keys or values [B, S, H', D] for so many heads of queries, which share them in turn."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    form: Form = PLAIN,
    first: int = 0,
    all_queries: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [B, Sq, H, D] and log-sum-exp of the scaled scores [B, H, Sq] (fp32; fp64 for fp64).

    Where q holds some queries of more, ``first`` is the first one's place among ``all_queries``.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = grouped(k, q.shape[2]), grouped(v, q.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide) * scale, k.to(wide))
    if form.plain or not scores.numel():
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse.unsqueeze(-1))
        return torch.einsum("bhqk,bkhd->bqhd", weights, v.to(wide)).to(q.dtype), lse
    scores = _bent(scores, form, first, q.shape[1] if all_queries is None else all_queries)
    # A query that attends to nothing gets zeros, and no gradient; a NaN among its scores stays one.
    peak = scores.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -math.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    nothing_there = total == 0
    total = total.masked_fill(nothing_there, 1.0)
    lse = (total.log() + peak).masked_fill(nothing_there, -math.inf).squeeze(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights / total, v.to(wide)).to(q.dtype), lse


def _bent(scores: Tensor, form: Form, first: int, all_queries: int) -> Tensor:
    """Scores [B, H, Sq, Sk] as the form has them, -inf where a query does not attend."""
    queries, keys = scores.shape[2:]
    if form.softcap is not None:
        scores = form.softcap * torch.tanh(scores / form.softcap)
    allowed = form.allowed(first, queries, all_queries, keys, scores.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    mask = form.of(slice(first, first + queries))
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask.to(scores.dtype)


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
