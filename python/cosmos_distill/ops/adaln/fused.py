"""Adaptive LayerNorm and RMSNorm as fused operators, for every backend with kernels of its own.

A backend's module offers six functions. x, y, their results and gradients are contiguous [*G, N, D] with one
row of modulation [*G, D] per group; modulation, its gradients and the statistics [*G, N, 2] (mean and
reciprocal standard deviation of each row; with ``rms``, 0 and the reciprocal root mean square) are fp32:

    adaln_modulate(x, shift, scale, eps, rms, dtype) -> out, stats
    adaln_modulate_backward(grad, x, stats, scale, rms, wanted) -> dx, dshift, dscale
    gated_residual_adaln(x, y, gate, shift, scale, eps, rms, dtype)
        -> x_new, out, stats                                                   (stats of x_new as rounded)
    gated_residual_adaln_backward(grad_x_new or None, grad, x_new, y or None, stats, gate, scale, rms, dtype,
                                  wanted) -> dx, dy, dgate, dshift, dscale
    gated_residual(x, y, gate) -> out
    gated_residual_backward(grad, y or None, gate, dtype, wanted) -> dy, dgate

x, x_new, dx and grad_x_new are in one dtype (fp32, bf16 or fp16), and so are y and dy, and out and grad. All
three are the same, or x is fp32, y bf16 or fp16, and out fp32 or like y; where there is no y, out alone may
be narrower. ``dtype`` is that of out, None for x's; of dy in gradients, None for x_new's. y is there where
``wanted`` (see declaration.py) asks for dgate.

Modulation may be a slice of a wider tensor: its last axis is dense, its rows evenly spaced. Backward
recomputes the normalised rows from x and the statistics, and adds up rows in an order of its own that
depends neither on the number of threads nor on the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..declaration import Kind, Kinds, Measure, narrow, small
from ..elements import ELEMENTS, new_fp32
from ..library import define, define_differentiable, is_wanted, kernel, wanted, where_wanted
from ..strides import evenly_spaced, spacing


def layout(x: Tensor) -> tuple[int, int, int]:
    """(groups, rows per group, width) of tokens [*G, N, D]."""
    return x.shape[:-2].numel(), *x.shape[-2:]


def rows(modulation: Tensor) -> Tensor:
    """Modulation as kernels read it: fp32 with evenly spaced dense rows. Slices are not copied."""
    modulation = modulation.float()
    strides = modulation.stride()
    if strides[-1] == 1 and (len(strides) == 2 or evenly_spaced(modulation)):
        return modulation
    return modulation.contiguous()


def distance(modulation: Tensor) -> int:
    """Elements between such rows."""
    return spacing(modulation, modulation.dim() - 1)


def addressed(modulation: Tensor) -> tuple[int, int]:
    """What compiled kernels are told of such rows: the address, and the distance between them."""
    return modulation.data_ptr(), distance(modulation)


def elements(*tensors: Tensor) -> int:
    """How compiled kernels number the dtypes of these together."""
    return sum(ELEMENTS[x.dtype] << 2 * i for i, x in enumerate(tensors))


def wanted_of(x: Tensor, wanted: int, sums: Sequence[Tensor | None]) -> list[Tensor]:
    """fp32 sums beside x, and nothing in the place of those that are not wanted."""
    return [new_fp32(x, 0) if one is None or not is_wanted(wanted, i) else one for i, one in enumerate(sums)]


def stats_like(x: Tensor) -> Tensor:
    return new_fp32(x, *x.shape[:-1], 2)


KINDS = Kinds(
    {
        "tokens": narrow("*G N D"),
        "typed": Kind("*G N D", "dtype"),
        "rows": Kind("*G D"),
        "stats": small("*G N 2"),
    },
    split="*G N",
)
_NORM = {"eps": 1e-6, "rms": False, "dtype": None}

_modulate_backward = define(
    "adaln_modulate_backward(tokens grad, tokens x, stats stats, rows scale, bool rms, int wanted)"
    " -> (x, rows(x), rows(x))",
    KINDS,
    kernel("adaln", "adaln_modulate_backward"),
    Measure("adaln_modulate", "bwd", flops=14, numbers={"rms": False, "wanted": 0b111}),
)


def _save_modulate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, scale, _, ctx.rms, _, ctx.backend = inputs
    ctx.wanted = wanted(ctx, 0, 1, 2)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], scale)


def _modulate_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    grads = _modulate_backward(grad.contiguous(), *ctx.saved_tensors, ctx.rms, ctx.wanted, ctx.backend)
    return *where_wanted(ctx.wanted, grads), *(None,) * 4


_modulate = define_differentiable(
    "adaln_modulate(tokens x, rows shift, rows scale, float eps, bool rms, ScalarType? dtype)"
    " -> (typed(x), stats(x))",
    KINDS,
    kernel("adaln", "adaln_modulate"),
    _save_modulate,
    _modulate_gradient,
    Measure("adaln_modulate", "fwd", flops=8, numbers=_NORM),
)


def adaln_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rms: bool,
    dtype: torch.dtype | None,
    backend: str,
) -> Tensor:
    """See :func:`cosmos_distill.ops.adaln_modulate`."""
    out: Tensor = _modulate(x.contiguous(), rows(shift), rows(scale), eps, rms, dtype, backend)[0]
    return out


_residual_backward = define(
    "gated_residual_backward(tokens grad, tokens? y, rows gate, ScalarType? dtype, int wanted)"
    " -> (typed(grad), rows(grad))",
    KINDS,
    kernel("adaln", "gated_residual_backward"),
)


def _save_residual(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
    _, y, gate, ctx.backend = inputs
    ctx.wanted, ctx.dtype = wanted(ctx, 1, 2), y.dtype
    ctx.save_for_backward(y if is_wanted(ctx.wanted, 1) else None, gate)


def _residual_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dx = grad if ctx.needs_input_grad[0] else None
    if not ctx.wanted:
        return dx, None, None, None
    grads = _residual_backward(grad.contiguous(), *ctx.saved_tensors, ctx.dtype, ctx.wanted, ctx.backend)
    return dx, *where_wanted(ctx.wanted, grads), None


_residual = define_differentiable(
    "gated_residual(tokens x, tokens y, rows gate) -> x",
    KINDS,
    kernel("adaln", "gated_residual"),
    _save_residual,
    _residual_gradient,
)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, backend: str) -> Tensor:
    """See :func:`cosmos_distill.ops.gated_residual`."""
    out: Tensor = _residual(x.contiguous(), y.contiguous(), rows(gate), backend)
    return out


_gated_backward = define(
    "gated_residual_adaln_backward(tokens? grad_x_new, tokens grad, tokens x_new, tokens? y, stats stats,"
    " rows gate, rows scale, bool rms, ScalarType? dtype, int wanted)"
    " -> (x_new, typed(x_new), rows(x_new), rows(x_new), rows(x_new))",
    KINDS,
    kernel("adaln", "gated_residual_adaln_backward"),
    Measure(
        "gated_residual_adaln",
        "bwd",
        flops=18,
        given="grad_x_new y",
        numbers={"rms": False, "dtype": None, "wanted": 0b11111},
    ),
)


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, y, gate, _, scale, _, ctx.rms, _, ctx.backend = inputs
    ctx.wanted, ctx.dtype = wanted(ctx, 0, 1, 2, 3, 4), y.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[0], y if is_wanted(ctx.wanted, 2) else None, output[2], gate, scale)


def _gated_gradient(ctx: Any, grad_x_new: Tensor | None, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad_x_new is None and grad is None:
        return (None,) * 9
    x_new, y, stats, gate, scale = ctx.saved_tensors
    if grad_x_new is not None:
        grad_x_new = grad_x_new.contiguous()
    if grad is None:  # nothing of what is normalised is used
        bits = ctx.wanted >> 1 & 0b11
        dx = grad_x_new if is_wanted(ctx.wanted, 0) else None
        if not bits:
            return dx, *(None,) * 8
        grads = _residual_backward(grad_x_new, y, gate, ctx.dtype, bits, ctx.backend)
        return dx, *where_wanted(bits, grads), *(None,) * 6
    saved = x_new, y, stats, gate, scale
    how = ctx.rms, ctx.dtype, ctx.wanted, ctx.backend
    grads = _gated_backward(grad_x_new, grad.contiguous(), *saved, *how)
    return *where_wanted(ctx.wanted, grads), *(None,) * 4


_gated = define_differentiable(
    "gated_residual_adaln(tokens x, tokens y, rows gate, rows shift, rows scale, float eps, bool rms,"
    " ScalarType? dtype) -> (x, typed(x), stats(x))",
    KINDS,
    kernel("adaln", "gated_residual_adaln"),
    _save_gated,
    _gated_gradient,
    Measure("gated_residual_adaln", "fwd", flops=10, numbers=_NORM),
)


def gated_residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rms: bool,
    dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.gated_residual_adaln`."""
    narrower = dtype is not None and y.dtype == x.dtype != dtype  # which kernels have for a narrow y only
    how = eps, rms, None if narrower else dtype, backend
    x_new, out, _ = _gated(x.contiguous(), y.contiguous(), rows(gate), rows(shift), rows(scale), *how)
    return x_new, out.to(dtype) if narrower else out
