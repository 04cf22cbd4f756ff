"""Query/key RMSNorm and rotary embedding on CUDA devices: csrc/qk_norm_rope.cu. See fused.py for what the
functions take and return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cuda_launch import address, dtype_of, functions, launch

Shape = tuple[int, int, int, int, int]


def _shape(x: Tensor) -> Shape:
    """[B, S, H, Dh] and the distance between tokens."""
    batch, length, heads, dim = x.shape
    if dim % 2:
        raise ValueError(f"the CUDA kernels take an even head size, not {dim}: pass backend='reference'")
    return batch, length, heads, dim, x.stride(1)


def _rotary(cos: Tensor | None, sin: Tensor | None, grid: Sequence[int]) -> tuple[int, int, bool, list[int]]:
    per_sample = cos is not None and cos.dim() == (2 if grid else 3)
    return address(cos), address(sin), per_sample, list(grid)


def _forward(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, grid: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:3], dtype=torch.float32)
    launch(
        functions.norm_rope_forward,
        x,
        dtype_of(x),
        _shape(x),
        x.data_ptr(),
        weight.data_ptr(),
        *_rotary(cos, sin, grid),
        eps,
        out.data_ptr(),
        rstd.data_ptr(),
    )
    return out, rstd


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: Sequence[int],
) -> tuple[Tensor, Tensor]:
    dx, dweight = x.new_empty(x.shape), torch.empty_like(weight)
    partial = weight.new_empty(functions.norm_rope_chunks(_shape(x)), weight.shape[0])
    launch(
        functions.norm_rope_backward,
        x,
        dtype_of(x),
        _shape(x),
        grad.data_ptr(),
        x.data_ptr(),
        rstd.data_ptr(),
        weight.data_ptr(),
        *_rotary(cos, sin, grid),
        dx.data_ptr(),
        dweight.data_ptr(),
        partial.data_ptr(),
    )
    return dx, dweight


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_out, q_rstd = _forward(q, q_weight, cos, sin, grid, eps)
    k_out, k_rstd = _forward(k, k_weight, cos, sin, grid, eps)
    return q_out, k_out, q_rstd, k_rstd


def qk_norm_rope_backward(
    q_grad: Tensor,
    k_grad: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    q_rstd: Tensor,
    k_rstd: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dq_weight = _backward(q_grad, q, q_weight, q_rstd, cos, sin, grid)
    dk, dk_weight = _backward(k_grad, k, k_weight, k_rstd, cos, sin, grid)
    return dq, dk, dq_weight, dk_weight
