"""Adaptive LayerNorm on the CPU: csrc/adaln.cpp, fp32, forward and backward.

The results do not depend on the number of threads. Backward recomputes the normalised rows from x and
two numbers per row instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch  # before _C: the compiled module then shares torch's OpenMP runtime and thread count
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import _C


def _rows(modulation: Tensor) -> tuple[Tensor, int]:
    """A modulation whose rows lie ``stride`` floats apart; slices of a wider tensor stay as they are."""
    strides = modulation.stride()
    if strides[-1] == 1 and (len(strides) == 2 or strides[0] == modulation.shape[1] * strides[1]):
        return modulation, strides[-2]
    return modulation.contiguous(), modulation.shape[-1]


def _layout(x: Tensor) -> tuple[int, int, int]:
    """(groups, rows per group, width) of tokens [B, N, D] or [B, T, N, D]."""
    shape = x.shape
    return (shape[0] if len(shape) == 3 else shape[0] * shape[1]), shape[-2], shape[-1]


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out, x as read, [rows, 2] means and reciprocal standard deviations)."""
    x = x.contiguous()
    groups, rows, width = _layout(x)
    shift, shift_stride = _rows(shift)
    scale, scale_stride = _rows(scale)
    out = torch.empty_like(x)
    stats = x.new_empty(groups * rows * 2)
    _C.adaln_forward(
        groups,
        rows,
        width,
        x.data_ptr(),
        shift.data_ptr(),
        shift_stride,
        scale.data_ptr(),
        scale_stride,
        eps,
        out.data_ptr(),
        stats.data_ptr(),
    )
    return out, x, stats


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        out, x, stats = _modulate(x, shift, scale, eps)
        ctx.save_for_backward(x, scale, stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, stats = ctx.saved_tensors
        grad = grad.contiguous()
        scale, scale_stride = _rows(scale)
        dx = torch.empty_like(x)
        dshift, dscale = x.new_empty(scale.shape), x.new_empty(scale.shape)
        _C.adaln_backward(
            *_layout(x),
            grad.data_ptr(),
            x.data_ptr(),
            stats.data_ptr(),
            scale.data_ptr(),
            scale_stride,
            dx.data_ptr(),
            dshift.data_ptr(),
            dscale.data_ptr(),
        )
        return dx, dshift, dscale, None


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See :func:`cosmos_distill.ops.adaln_modulate`."""
    if torch.is_grad_enabled() and (x.requires_grad or shift.requires_grad or scale.requires_grad):
        out: Tensor = _Modulate.apply(x, shift, scale, eps)
        return out
    return _modulate(x, shift, scale, eps)[0]


def _gated(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_new, out, y as read, [rows, 2] means and reciprocal standard deviations)."""
    x, y = x.contiguous(), y.contiguous()
    groups, rows, width = _layout(x)
    gate, gate_stride = _rows(gate)
    shift, shift_stride = _rows(shift)
    scale, scale_stride = _rows(scale)
    x_new, out = torch.empty_like(x), torch.empty_like(x)
    stats = x.new_empty(groups * rows * 2)
    _C.gated_adaln_forward(
        groups,
        rows,
        width,
        x.data_ptr(),
        y.data_ptr(),
        gate.data_ptr(),
        gate_stride,
        shift.data_ptr(),
        shift_stride,
        scale.data_ptr(),
        scale_stride,
        eps,
        x_new.data_ptr(),
        out.data_ptr(),
        stats.data_ptr(),
    )
    return x_new, out, y, stats


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x_new, out, y, stats = _gated(x, y, gate, shift, scale, eps)
        ctx.save_for_backward(x_new, y, gate, scale, stats)
        ctx.set_materialize_grads(False)
        return x_new, out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x_new: Tensor | None, grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
        if grad_x_new is None and grad is None:
            return None, None, None, None, None, None
        x_new, y, gate, scale, stats = ctx.saved_tensors
        grad = torch.zeros_like(x_new) if grad is None else grad.contiguous()
        if grad_x_new is not None:
            grad_x_new = grad_x_new.contiguous()
        gate, gate_stride = _rows(gate)
        scale, scale_stride = _rows(scale)
        dx, dy = torch.empty_like(x_new), torch.empty_like(x_new)
        dgate, dshift, dscale = (x_new.new_empty(scale.shape) for _ in range(3))
        _C.gated_adaln_backward(
            *_layout(x_new),
            grad.data_ptr(),
            0 if grad_x_new is None else grad_x_new.data_ptr(),
            x_new.data_ptr(),
            y.data_ptr(),
            stats.data_ptr(),
            gate.data_ptr(),
            gate_stride,
            scale.data_ptr(),
            scale_stride,
            dx.data_ptr(),
            dy.data_ptr(),
            dgate.data_ptr(),
            dshift.data_ptr(),
            dscale.data_ptr(),
        )
        return dx, dy, dgate, dshift, dscale, None


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.gated_residual_adaln`."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, gate, shift, scale)):
        both: tuple[Tensor, Tensor] = _Gated.apply(x, y, gate, shift, scale, eps)
        return both
    x_new, out, _, _ = _gated(x, y, gate, shift, scale, eps)
    return x_new, out
