"""Adaptive LayerNorm and RMSNorm on the CPU: csrc/adaln.cpp. See fused.py for what the functions take and
return.

The results do not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled import interface, kernels
from ..elements import address, new_fp32, nothing
from ..library import is_wanted
from ..strides import new_like
from .fused import addressed, elements, layout, stats_like, wanted_of

interface("adaln", 2)


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, rms: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    out = new_like(x, dtype)
    stats = stats_like(x)
    kernels.adaln_forward(
        elements(x, out),
        *layout(x),
        x.data_ptr(),
        *addressed(shift),
        *addressed(scale),
        eps,
        rms,
        out.data_ptr(),
        stats.data_ptr(),
    )
    return out, stats


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor, rms: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_like(x) if is_wanted(wanted, 0) else nothing(x)
    sums = [new_fp32(x, *scale.shape) if wanted & 0b110 else None for _ in range(2)]
    kernels.adaln_backward(
        elements(x, grad),
        *layout(x),
        grad.data_ptr(),
        x.data_ptr(),
        stats.data_ptr(),
        *addressed(scale),
        dx.data_ptr(),
        *map(address, sums),
        rms,
    )
    dshift, dscale = wanted_of(x, wanted >> 1, sums)
    return dx, dshift, dscale


def gated_residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rms: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    x_new, out = new_like(x), new_like(x, dtype)
    stats = stats_like(x)
    kernels.gated_adaln_forward(
        elements(x, y, out),
        *layout(x),
        x.data_ptr(),
        y.data_ptr(),
        *addressed(gate),
        *addressed(shift),
        *addressed(scale),
        eps,
        rms,
        x_new.data_ptr(),
        out.data_ptr(),
        stats.data_ptr(),
    )
    return x_new, out, stats


def gated_residual_adaln_backward(
    grad_x_new: Tensor | None,
    grad: Tensor,
    x_new: Tensor,
    y: Tensor | None,
    stats: Tensor,
    gate: Tensor,
    scale: Tensor,
    rms: bool,
    dtype: torch.dtype | None,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx = new_like(x_new) if is_wanted(wanted, 0) else nothing(x_new)
    dy = new_like(x_new, dtype) if is_wanted(wanted, 1) else nothing(x_new, dtype)
    dgate = new_fp32(x_new, *scale.shape) if is_wanted(wanted, 2) else None
    sums = [new_fp32(x_new, *scale.shape) if wanted & 0b11000 else None for _ in range(2)]
    kernels.gated_adaln_backward(
        elements(x_new, dy, grad),
        *layout(x_new),
        grad.data_ptr(),
        address(grad_x_new),
        x_new.data_ptr(),
        address(y),
        stats.data_ptr(),
        *addressed(gate),
        *addressed(scale),
        dx.data_ptr(),
        dy.data_ptr(),
        address(dgate),
        *map(address, sums),
        rms,
    )
    dgate, dshift, dscale = wanted_of(x_new, wanted >> 2, [dgate, *sums])
    return dx, dy, dgate, dshift, dscale


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = new_like(x)
    kernels.gated_residual_forward(
        elements(x, y), *layout(x), x.data_ptr(), y.data_ptr(), *addressed(gate), out.data_ptr()
    )
    return out


def gated_residual_backward(
    grad: Tensor, y: Tensor | None, gate: Tensor, dtype: torch.dtype | None, wanted: int
) -> tuple[Tensor, Tensor]:
    dy = new_like(grad, dtype) if is_wanted(wanted, 0) else nothing(grad, dtype)
    dgate = new_fp32(grad, *gate.shape) if is_wanted(wanted, 1) else new_fp32(grad, 0)
    kernels.gated_residual_backward(
        elements(grad, dy),
        *layout(grad),
        grad.data_ptr(),
        address(y),
        *addressed(gate),
        dy.data_ptr(),
        dgate.data_ptr(),
    )
    return dy, dgate
