"""Query/key RMSNorm and rotary embedding on the CPU: csrc/qk_norm_rope.cpp. See fused.py for what the
functions take and return. The results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..compiled import interface, kernels
from ..elements import ELEMENTS, new_fp32, nothing
from ..strides import new_like
from .fused import arrangement, distance, rstd_like

interface("qk_norm_rope", 2)

Tables = tuple[int, int, int, list[int]]
"""As csrc/ reads them."""


def _tables(cos: Tensor | None, sin: Tensor | None, grid: Sequence[int], interleaved: bool) -> Tables:
    if cos is None or sin is None:
        return 0, 0, 0, []
    return cos.data_ptr(), sin.data_ptr(), arrangement(cos, grid, interleaved), list(grid)


def _layout(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """The element, [B, S, H, Dh], and the distance between tokens."""
    batch, length, heads, dim = x.shape
    return ELEMENTS[x.dtype], batch, length, heads, dim, distance(x)


def _forward(x: Tensor, weight: Tensor, tables: Tables, eps: float) -> tuple[Tensor, Tensor]:
    out, rstd = new_like(x), rstd_like(x)
    kernels.norm_rope_forward(
        *_layout(x),
        x.data_ptr(),
        weight.data_ptr(),
        *tables,
        eps,
        out.data_ptr(),
        rstd.data_ptr(),
    )
    return out, rstd


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, tables: Tables, wanted: int
) -> tuple[Tensor, Tensor]:
    """``wanted``: bits for dx (1) and dweight (4)."""
    dx = new_like(x) if wanted & 1 else nothing(x)
    dweight = new_fp32(x, *weight.shape) if wanted & 4 else nothing(weight)
    if not wanted & 5:
        return dx, dweight
    kernels.norm_rope_backward(
        *_layout(x),
        grad.data_ptr(),
        x.data_ptr(),
        rstd.data_ptr(),
        weight.data_ptr(),
        *tables,
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
    interleaved: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tables = _tables(cos, sin, grid, interleaved)
    q_out, q_rstd = _forward(q, q_weight, tables, eps)
    k_out, k_rstd = _forward(k, k_weight, tables, eps)
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
    interleaved: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tables = _tables(cos, sin, grid, interleaved)
    dq, dq_weight = _backward(q_grad, q, q_weight, q_rstd, tables, wanted)
    dk, dk_weight = _backward(k_grad, k, k_weight, k_rstd, tables, wanted >> 1)
    return dq, dk, dq_weight, dk_weight
