"""Adaptive LayerNorm on the CPU: csrc/adaln.cpp. See fused.py for what the functions take and return.

The results do not depend on the number of threads.
"""

from __future__ import annotations

from torch import Tensor

from ..compiled import kernels
from ..elements import ELEMENTS, address, new_fp32
from ..strides import new_like
from .fused import addressed, layout, stats_like


def _layout(x: Tensor) -> tuple[int, int, int, int]:
    return ELEMENTS[x.dtype], *layout(x)


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out = new_like(x)
    stats = stats_like(x)
    kernels.adaln_forward(
        *_layout(x), x.data_ptr(), *addressed(shift), *addressed(scale), eps, out.data_ptr(), stats.data_ptr()
    )
    return out, stats


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_like(x)
    dshift, dscale = (new_fp32(x, *scale.shape) for _ in range(2))
    kernels.adaln_backward(
        *_layout(x),
        grad.data_ptr(),
        x.data_ptr(),
        stats.data_ptr(),
        *addressed(scale),
        dx.data_ptr(),
        dshift.data_ptr(),
        dscale.data_ptr(),
    )
    return dx, dshift, dscale


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x_new, out = new_like(x), new_like(x)
    stats = stats_like(x)
    kernels.gated_adaln_forward(
        *_layout(x),
        x.data_ptr(),
        y.data_ptr(),
        *addressed(gate),
        *addressed(shift),
        *addressed(scale),
        eps,
        x_new.data_ptr(),
        out.data_ptr(),
        stats.data_ptr(),
    )
    return x_new, out, stats


def gated_residual_adaln_backward(
    grad_x_new: Tensor | None,
    grad: Tensor,
    x_new: Tensor,
    y: Tensor,
    stats: Tensor,
    gate: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dy = new_like(x_new), new_like(x_new)
    dgate, dshift, dscale = (new_fp32(x_new, *scale.shape) for _ in range(3))
    kernels.gated_adaln_backward(
        *_layout(x_new),
        grad.data_ptr(),
        address(grad_x_new),
        x_new.data_ptr(),
        y.data_ptr(),
        stats.data_ptr(),
        *addressed(gate),
        *addressed(scale),
        dx.data_ptr(),
        dy.data_ptr(),
        dgate.data_ptr(),
        dshift.data_ptr(),
        dscale.data_ptr(),
    )
    return dx, dy, dgate, dshift, dscale
