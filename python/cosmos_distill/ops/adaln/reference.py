"""Adaptive LayerNorm and RMSNorm in plain torch. Serves every device and dtype; fp64 stays fp64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _per_token(modulation: Tensor, x: Tensor) -> Tensor:
    """[B, D] or [B, T, D] -> [B, 1, D] or [B, T, 1, D], in the dtype of the computation."""
    return modulation.unsqueeze(-2).to(compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp64 for fp64, fp32 for everything narrower: a bf16 mean over 4096 channels loses the result."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, rms: bool, dtype: torch.dtype | None
) -> Tensor:
    """See :func:`cosmos_distill.ops.adaln_modulate`."""
    norm = F.rms_norm if rms else F.layer_norm
    normed = norm(x.to(compute_dtype(x)), x.shape[-1:], eps=eps)
    return torch.addcmul(_per_token(shift, x), normed, 1 + _per_token(scale, x)).to(dtype or x.dtype)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """See :func:`cosmos_distill.ops.gated_residual`."""
    wide = compute_dtype(x)
    return torch.addcmul(x.to(wide), _per_token(gate, x), y.to(wide)).to(x.dtype)


def gated_residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rms: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.gated_residual_adaln`."""
    # The residual stream is rounded once, here, and normalised as it will be read by the next block.
    x_new = gated_residual(x, y, gate)
    return x_new, adaln_modulate(x_new, shift, scale, eps, rms, dtype)
