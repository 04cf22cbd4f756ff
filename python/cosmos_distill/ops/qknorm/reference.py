"""Query/key RMSNorm and rotary embedding in plain torch. Serves every device and dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _turned(x: Tensor, interleaved: bool) -> Tensor:
    """x with each pair of channels (a, b) turned by a right angle, to (-b, a)."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _norm_rope(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool, eps: float
) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    normed = F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps)
    if cos is None or sin is None:
        return normed.to(x.dtype)
    rotated = _turned(normed, interleaved)
    # [S, Dh] and [B, S, Dh] both become [.., S, 1, Dh], which broadcasts over heads (and samples).
    return (normed * cos.unsqueeze(-2) + rotated * sin.unsqueeze(-2)).to(x.dtype)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.qk_norm_rope`."""
    tables = cos, sin, interleaved, eps
    return _norm_rope(q, q_weight, *tables), _norm_rope(k, k_weight, *tables)
