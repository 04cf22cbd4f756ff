"""Adaptive LayerNorm and RMSNorm on CUDA devices: csrc/adaln.cu. See fused.py for what the functions take and
return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cuda_launch import functions, launch
from ..elements import address, new_fp32, nothing
from ..library import is_wanted
from ..strides import new_like
from .fused import addressed, elements, layout, stats_like, wanted_of

PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    # Two sweeps: for the sums over a row, and for its gradient.
    **{("adaln_backward_kernel", x): lambda _: 2 for x in ("grad", "x", "x_new")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once
(benchmarks/gpu)."""

_NO_ROWS = 0, 0


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, rms: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    out, stats = new_like(x, dtype), stats_like(x)
    launch(
        functions.adaln_forward,
        x,
        elements(x, out, out),
        *layout(x),
        x.data_ptr(),
        0,
        *_NO_ROWS,
        *addressed(shift),
        *addressed(scale),
        eps,
        0,
        out.data_ptr(),
        stats.data_ptr(),
        rms,
    )
    return out, stats


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
    x_new, out, stats = new_like(x), new_like(x, dtype), stats_like(x)
    launch(
        functions.adaln_forward,
        x,
        elements(x, y, out),
        *layout(x),
        x.data_ptr(),
        y.data_ptr(),
        *addressed(gate),
        *addressed(shift),
        *addressed(scale),
        eps,
        x_new.data_ptr(),
        out.data_ptr(),
        stats.data_ptr(),
        rms,
    )
    return x_new, out, stats


def _partial(x: Tensor, sums: int) -> Tensor | None:
    """Scratch for the sums over chunks of rows, None for no sums."""
    if not sums:
        return None
    groups, rows, width = layout(x)
    return new_fp32(x, groups, functions.adaln_chunks(groups, rows), sums * width)


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor, rms: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_like(x) if is_wanted(wanted, 0) else nothing(x)
    sums = [new_fp32(x, *scale.shape) if wanted & 0b110 else None for _ in range(2)]
    partial = _partial(x, 2 if wanted & 0b110 else 0)
    launch(
        functions.adaln_backward,
        x,
        elements(x, grad, grad),
        *layout(x),
        grad.data_ptr(),
        0,
        x.data_ptr(),
        0,
        stats.data_ptr(),
        *_NO_ROWS,
        *addressed(scale),
        dx.data_ptr(),
        0,
        0,
        *map(address, sums),
        address(partial),
        rms,
    )
    dshift, dscale = wanted_of(x, wanted >> 1, sums)
    return dx, dshift, dscale


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
    # The kernel has all sums that come before one that is wanted: of shift, scale and gate.
    count = 3 if is_wanted(wanted, 2) else 2 if wanted & 0b11000 else 0
    sums = [new_fp32(x_new, *scale.shape) if i < count else None for i in (2, 0, 1)]
    partial = _partial(x_new, count)
    launch(
        functions.adaln_backward,
        x_new,
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
        *map(address, sums),
        address(partial),
        rms,
    )
    dgate, dshift, dscale = wanted_of(x_new, wanted >> 2, sums)
    return dx, dy, dgate, dshift, dscale


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = new_like(x)
    launch(
        functions.gated_residual_forward,
        x,
        elements(x, y, y),
        *layout(x),
        x.data_ptr(),
        y.data_ptr(),
        *addressed(gate),
        out.data_ptr(),
    )
    return out


def gated_residual_backward(
    grad: Tensor, y: Tensor | None, gate: Tensor, dtype: torch.dtype | None, wanted: int
) -> tuple[Tensor, Tensor]:
    dy = new_like(grad, dtype) if is_wanted(wanted, 0) else nothing(grad, dtype)
    dgate = new_fp32(grad, *gate.shape) if is_wanted(wanted, 1) else new_fp32(grad, 0)
    partial = _partial(grad, is_wanted(wanted, 1))
    launch(
        functions.gated_residual_backward,
        grad,
        elements(grad, dy, dy),
        *layout(grad),
        grad.data_ptr(),
        address(y),
        *addressed(gate),
        dy.data_ptr(),
        dgate.data_ptr(),
        address(partial),
    )
    return dy, dgate
