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
