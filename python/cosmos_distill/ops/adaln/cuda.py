"""Adaptive LayerNorm on CUDA devices: csrc/adaln.cu. See fused.py for what the functions take and return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..cuda_launch import dtype_of, functions, launch
from ..elements import address, new_fp32
from ..strides import new_like
from .fused import addressed, layout, stats_like

PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    # Two sweeps: for the sums over a row, and for its gradient.
    **{("adaln_backward_kernel", x): lambda _: 2 for x in ("grad", "x", "x_new")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once
(benchmarks/gpu)."""


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, stats = new_like(x), stats_like(x)
    launch(
        functions.adaln_forward,
        x,
        dtype_of(x),
        *layout(x),
        x.data_ptr(),
        0,
        0,
        0,
        *addressed(shift),
        *addressed(scale),
        eps,
        0,
        out.data_ptr(),
        stats.data_ptr(),
    )
    return out, stats


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x_new, out, stats = new_like(x), new_like(x), stats_like(x)
    launch(
        functions.adaln_forward,
        x,
        dtype_of(x),
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
    )
    return x_new, out, stats


def _partial(x: Tensor, sums: int) -> Tensor:
    """Scratch for the sums over chunks of rows."""
    groups, rows, width = layout(x)
    return new_fp32(x, groups, functions.adaln_chunks(groups, rows), sums * width)


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_like(x)
    dshift, dscale = (new_fp32(x, *scale.shape) for _ in range(2))
    partial = _partial(x, 2)
    launch(
        functions.adaln_backward,
        x,
        dtype_of(x),
        *layout(x),
        grad.data_ptr(),
        0,
        x.data_ptr(),
        0,
        stats.data_ptr(),
        0,
        0,
        *addressed(scale),
        dx.data_ptr(),
        0,
        0,
        dshift.data_ptr(),
        dscale.data_ptr(),
        partial.data_ptr(),
    )
    return dx, dshift, dscale


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
    dgate, dshift, dscale = (new_fp32(y, *scale.shape) for _ in range(3))
    partial = _partial(x_new, 3)
    launch(
        functions.adaln_backward,
        x_new,
        dtype_of(x_new),
        *layout(x_new),
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
        partial.data_ptr(),
    )
    return dx, dy, dgate, dshift, dscale
