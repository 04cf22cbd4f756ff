"""Adaptive LayerNorm as fused operators, for every backend with kernels of its own.

A backend's module offers four functions. x, y, their results and gradients are contiguous [*G, N, D] in one
dtype (fp32, bf16 or fp16), with one row of modulation [*G, D] per group; modulation, its gradients and the
statistics [*G, N, 2] (mean and reciprocal standard deviation of each row) are fp32:

    adaln_modulate(x, shift, scale, eps) -> out, stats
    adaln_modulate_backward(grad, x, stats, scale) -> dx, dshift, dscale
    gated_residual_adaln(x, y, gate, shift, scale, eps) -> x_new, out, stats      (stats of x_new as rounded)
    gated_residual_adaln_backward(grad_x_new or None, grad, x_new, y, stats, gate, scale)
        -> dx, dy, dgate, dshift, dscale

Modulation may be a slice of a wider tensor: its last axis is dense, its rows evenly spaced. Backward
recomputes the normalised rows from x and the statistics, and adds up rows in an order of its own that
depends neither on the number of threads nor on the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..declaration import Kind, Kinds, Measure, narrow, small
from ..elements import new_fp32
from ..library import define, define_differentiable, kernel
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


def stats_like(x: Tensor) -> Tensor:
    return new_fp32(x, *x.shape[:-1], 2)


KINDS = Kinds(
    {"tokens": narrow("*G N D"), "rows": Kind("*G D"), "stats": small("*G N 2")},
    split="*G N",
)
_EPS = {"eps": 1e-6}

_modulate_backward = define(
    "adaln_modulate_backward(tokens grad, tokens x, stats stats, rows scale) -> (x, rows(x), rows(x))",
    KINDS,
    kernel("adaln", "adaln_modulate_backward"),
    Measure("adaln_modulate", "bwd", flops=14),
)


def _save_modulate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, scale, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], scale)


def _modulate_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return *_modulate_backward(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None, None


_modulate = define_differentiable(
    "adaln_modulate(tokens x, rows shift, rows scale, float eps) -> (x, stats(x))",
    KINDS,
    kernel("adaln", "adaln_modulate"),
    _save_modulate,
    _modulate_gradient,
    Measure("adaln_modulate", "fwd", flops=8, numbers=_EPS),
)


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str) -> Tensor:
    """See :func:`cosmos_distill.ops.adaln_modulate`."""
    out: Tensor = _modulate(x.contiguous(), rows(shift), rows(scale), eps, backend)[0]
    return out


_gated_backward = define(
    "gated_residual_adaln_backward(tokens? grad_x_new, tokens grad, tokens x_new, tokens y, stats stats,"
    " rows gate, rows scale) -> (x_new, y, rows(x_new), rows(x_new), rows(x_new))",
    KINDS,
    kernel("adaln", "gated_residual_adaln_backward"),
    Measure("gated_residual_adaln", "bwd", flops=18, given="grad_x_new"),
)


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, y, gate, _, scale, _, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[0], y, output[2], gate, scale)


def _gated_gradient(ctx: Any, grad_x_new: Tensor | None, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad_x_new is None and grad is None:
        return (None,) * 7
    saved = ctx.saved_tensors
    grad = torch.zeros_like(saved[0]) if grad is None else grad.contiguous()
    if grad_x_new is not None:
        grad_x_new = grad_x_new.contiguous()
    return *_gated_backward(grad_x_new, grad, *saved, ctx.backend), None, None


_gated = define_differentiable(
    "gated_residual_adaln(tokens x, tokens y, rows gate, rows shift, rows scale, float eps)"
    " -> (x, x, stats(x))",
    KINDS,
    kernel("adaln", "gated_residual_adaln"),
    _save_gated,
    _gated_gradient,
    Measure("gated_residual_adaln", "fwd", flops=10, numbers=_EPS),
)


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.gated_residual_adaln`."""
    x_new, out, _ = _gated(x.contiguous(), y.contiguous(), rows(gate), rows(shift), rows(scale), eps, backend)
    return x_new, out
