"""Plain torch, in fp32 or, for fp64 tensors, fp64. See fused.py for what is one sweep there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in their common dtype, at least fp32; None stays None."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...]"""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def per_frame(mask: Tensor, like: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1] in the dtype of ``like``."""
    return mask.to(like.dtype)[:, None, :, None, None]


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor) -> Tensor:
    x0, eps = wide(x0, eps)
    signal = x0 if alpha is None else per_sample(alpha.to(x0.dtype), x0) * x0
    return signal + per_sample(sigma.to(x0.dtype), x0) * eps


def denoised(raw: Tensor, x_t: Tensor | None, coefficients: Tensor | None) -> Tensor:
    """``c_skip * x_t + c_out * raw`` with coefficients [B, 2], or raw itself where it is x0 already."""
    if x_t is None or coefficients is None:
        return raw
    skip, out = (per_sample(c, raw) for c in coefficients.to(raw.dtype).unbind(1))
    return skip * x_t + out * raw


def vsd(
    x: Tensor,
    teacher: Tensor,
    fake: Tensor,
    uncond: Tensor | None,
    x_t: Tensor | None,
    guidance: float,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(direction, [B, 3] sums over each sample of m |x - teacher|, direction^2 and m)."""
    if uncond is not None:
        teacher = torch.lerp(uncond, teacher, 1 + guidance)
    x0_teacher, x0_fake = (denoised(raw, x_t, coefficients) for raw in (teacher, fake))
    mask = torch.ones_like(x) if frame_mask is None else per_frame(frame_mask, x).expand_as(x)
    direction = mask * (x0_fake - x0_teacher)
    terms = (mask * (x - x0_teacher).abs(), direction.square(), mask)
    return direction, torch.stack([term.flatten(1).sum(1) for term in terms], dim=1)


def with_gradient(x: Tensor, value: Tensor, slope: Tensor, direction: Tensor) -> Tensor:
    """A function of x with this value [B] and the gradient slope[b] * direction."""
    x = x.to(direction.dtype)
    # A slope of zero silences its sample, even one that holds a NaN.
    silent = per_sample(slope == 0, x)
    x, direction = (t.masked_fill(silent, 0) for t in (x, direction))
    return (per_sample(slope, x) * direction * (x - x.detach())).flatten(1).sum(1) + value


def squared_error(
    raw: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    """Sum over each sample of m (target - x0)^2, [B]."""
    square = (target - denoised(raw, x_t, coefficients)).square()
    if frame_mask is not None:
        square = per_frame(frame_mask, square) * square
    return square.flatten(1).sum(1)
