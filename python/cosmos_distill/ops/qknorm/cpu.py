"""Query/key RMSNorm and rotary embedding on the CPU: csrc/qk_norm_rope.cpp. See fused.py for what the
functions take and return. The results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..compiled import kernels
from ..elements import ELEMENTS, new_fp32
from ..strides import new_like
from .fused import distance, rstd_like


def _tables(cos: Tensor | None, sin: Tensor | None, grid: Sequence[int]) -> tuple[int, int, bool, list[int]]:
    if cos is None or sin is None:
        return 0, 0, False, []
    return cos.data_ptr(), sin.data_ptr(), cos.dim() == (2 if grid else 3), list(grid)


def _layout(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """The element, [B, S, H, Dh], and the distance between tokens."""
    batch, length, heads, dim = x.shape
    return ELEMENTS[x.dtype], batch, length, heads, dim, distance(x)


def _forward(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, grid: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    out, rstd = new_like(x), rstd_like(x)
    kernels.norm_rope_forward(
        *_layout(x),
        x.data_ptr(),
        weight.data_ptr(),
        *_tables(cos, sin, grid),
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
    dx, dweight = new_like(x), new_fp32(x, *weight.shape)
    kernels.norm_rope_backward(
        *_layout(x),
        grad.data_ptr(),
        x.data_ptr(),
        rstd.data_ptr(),
        weight.data_ptr(),
        *_tables(cos, sin, grid),
        dx.data_ptr(),
        dweight.data_ptr(),
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
