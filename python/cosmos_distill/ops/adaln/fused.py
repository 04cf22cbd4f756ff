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

from ..elements import new_fp32
from ..library import define, define_differentiable, kernel
from ..strides import evenly_spaced, new_like, spacing


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


def _like_modulation(x: Tensor) -> Tensor:
    return new_fp32(x, *x.shape[:-2], x.shape[-1])


_modulate_backward = define(
    "adaln_modulate_backward(Tensor grad, Tensor x, Tensor stats, Tensor scale, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    kernel("adaln", "adaln_modulate_backward"),
    lambda grad, x, stats, scale, backend: (new_like(x), _like_modulation(x), _like_modulation(x)),
)


def _save_modulate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, scale, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], scale)


def _modulate_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return *_modulate_backward(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None, None


_modulate = define_differentiable(
    "adaln_modulate(Tensor x, Tensor shift, Tensor scale, float eps, str backend) -> (Tensor, Tensor)",
    kernel("adaln", "adaln_modulate"),
    lambda x, shift, scale, eps, backend: (new_like(x), stats_like(x)),
    _save_modulate,
    _modulate_gradient,
)


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str) -> Tensor:
    """See :func:`cosmos_distill.ops.adaln_modulate`."""
    out: Tensor = _modulate(x.contiguous(), rows(shift), rows(scale), eps, backend)[0]
    return out


_gated_backward = define(
    "gated_residual_adaln_backward(Tensor? grad_x_new, Tensor grad, Tensor x_new, Tensor y, Tensor stats,"
    " Tensor gate, Tensor scale, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel("adaln", "gated_residual_adaln_backward"),
    lambda grad_x_new, grad, x_new, y, stats, gate, scale, backend: (
        new_like(x_new),
        new_like(x_new),
        *(_like_modulation(x_new) for _ in range(3)),
    ),
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
    "gated_residual_adaln(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps,"
    " str backend) -> (Tensor, Tensor, Tensor)",
    kernel("adaln", "gated_residual_adaln"),
    lambda x, y, gate, shift, scale, eps, backend: (
        new_like(x),
        new_like(x),
        stats_like(x),
    ),
    _save_gated,
    _gated_gradient,
)


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.gated_residual_adaln`."""
    x_new, out, _ = _gated(x.contiguous(), y.contiguous(), rows(gate), rows(shift), rows(scale), eps, backend)
    return x_new, out
