"""Adaptive LayerNorm in Triton. See fused.py for what the functions take and return.

A program runs over a few neighbouring rows of one group with the group's modulation in registers: read again
for every row, the fp32 modulation would cost more cache bandwidth than the rows cost memory bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aot
from ..elements import new_fp32
from ..launch import launch
from ..partials import rows_per_program, total
from ..strides import new_like
from .fused import distance, layout, stats_like


@triton.jit
def _place(rows, ROWS: tl.constexpr):
    """This program's group and the first of its rows. All programs lie on the grid's first axis, a group's
    next to each other: the others end at 65,535, fewer than a clip has tokens."""
    programs = tl.cdiv(rows, ROWS)
    return (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) % programs * ROWS


@triton.jit
def adaln_forward(
    x,
    y,
    gate,
    shift,
    scale,
    x_new,
    out,
    stats,
    rows,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    GATED: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    group, first = _place(rows, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    factor = 1.0 + tl.load(scale + group * scale_stride + columns, mask=inside, other=0.0)
    offset = tl.load(shift + group * shift_stride + columns, mask=inside, other=0.0)
    if GATED:
        gates = tl.load(gate + group * gate_stride + columns, mask=inside, other=0.0)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        index = group * rows + row
        at = index * D + columns
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            value += gates * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            rounded = value.to(x_new.dtype.element_ty)
            tl.store(x_new + at, rounded, mask=inside)
            value = rounded.to(tl.float32)
        mean = tl.sum(value, 0) * (1.0 / D)
        centred = tl.where(inside, value - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 0) * (1.0 / D) + eps)
        result = centred * rstd * factor + offset
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
        tl.store(stats + 2 * index, mean)
        tl.store(stats + 2 * index + 1, rstd)


@triton.jit
def adaln_backward(
    grad_x_new,
    grad,
    x,
    y,
    stats,
    gate,
    scale,
    dx,
    dy,
    dgate,
    dshift,
    dscale,
    rows,
    gate_stride,
    scale_stride,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dgate, dshift and dscale get this program's rows' share: [groups, programs, D]."""
    group, first = _place(rows, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    factor = 1.0 + tl.load(scale + group * scale_stride + columns, mask=inside, other=0.0)
    shift_sum = tl.zeros([BLOCK], tl.float32)
    scale_sum = tl.zeros([BLOCK], tl.float32)
    if GATED:
        gate_sum = tl.zeros([BLOCK], tl.float32)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        index = group * rows + row
        at = index * D + columns
        mean = tl.load(stats + 2 * index)
        rstd = tl.load(stats + 2 * index + 1)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (value - mean) * rstd, 0.0)
        slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        shift_sum += slope
        scale_sum += slope * normed
        slope *= factor
        along_one = tl.sum(slope, 0) * (1.0 / D)
        along_normed = tl.sum(slope * normed, 0) * (1.0 / D)
        result = rstd * (slope - along_one - normed * along_normed)
        if RESIDUAL:
            result += tl.load(grad_x_new + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
        if GATED:
            # Read for every row: with four rows of channels in registers already, a fifth would spill.
            gates = tl.load(gate + group * gate_stride + columns, mask=inside, other=0.0)
            tl.store(dy + at, (gates * result).to(dy.dtype.element_ty), mask=inside)
            gate_sum += result * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    here = tl.program_id(0).to(tl.int64) * D + columns
    tl.store(dshift + here, shift_sum, mask=inside)
    tl.store(dscale + here, scale_sum, mask=inside)
    if GATED:
        tl.store(dgate + here, gate_sum, mask=inside)


def _warps(block: int, channels: int) -> int:
    """Enough that a thread has that many channels, so that its registers hold their modulation as well."""
    return min(16, max(1, block // (32 * channels)))


def _forward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor | None, Tensor, Tensor]:
    groups, rows, width = layout(x)
    block = triton.next_power_of_2(width)
    x_new = None if y is None else new_like(x)
    out = new_like(x)
    stats = stats_like(x)
    launch(
        adaln_forward,
        (groups * triton.cdiv(rows, 4),),
        x,
        y,
        gate,
        shift,
        scale,
        x_new,
        out,
        stats,
        rows,
        0 if gate is None else distance(gate),
        distance(shift),
        distance(scale),
        eps,
        GATED=y is not None,
        D=width,
        BLOCK=block,
        ROWS=4,
        num_warps=_warps(block, 16),
    )
    return x_new, out, stats


def _backward(
    grad_x_new: Tensor | None,
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    stats: Tensor,
    gate: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    groups, rows, width = layout(x)
    block = triton.next_power_of_2(width)
    per_program = rows_per_program(groups * rows)
    chunks = triton.cdiv(rows, per_program)
    dx = new_like(x)
    dy = None if y is None else new_like(x)
    sums = [None if absent else new_fp32(x, groups, chunks, width) for absent in (y is None, False, False)]
    launch(
        adaln_backward,
        (groups * chunks,),
        grad_x_new,
        grad,
        x,
        y,
        stats,
        gate,
        scale,
        dx,
        dy,
        *sums,
        rows,
        0 if gate is None else distance(gate),
        distance(scale),
        GATED=y is not None,
        RESIDUAL=grad_x_new is not None,
        D=width,
        BLOCK=block,
        ROWS=per_program,
        num_warps=_warps(block, 8),
    )
    dgate, dshift, dscale = (
        None if part is None else total(part, new_fp32(x, *scale.shape)) for part in sums
    )
    assert dshift is not None and dscale is not None
    return dx, dy, dgate, dshift, dscale


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _, out, stats = _forward(x, None, None, shift, scale, eps)
    return out, stats


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, _, _, dshift, dscale = _backward(None, grad, x, None, stats, None, scale)
    return dx, dshift, dscale


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x_new, out, stats = _forward(x, y, gate, shift, scale, eps)
    assert x_new is not None
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
    dx, dy, dgate, dshift, dscale = _backward(grad_x_new, grad, x_new, y, stats, gate, scale)
    assert dy is not None and dgate is not None
    return dx, dy, dgate, dshift, dscale


def aot_cases() -> list[aot.AotCase]:
    """Everything launched at the published networks' shapes."""
    found = []
    for network, width, frames in (("7B", 4096, 1), ("2B", 2048, 16), ("14B", 5120, 16)):
        for dtype, short in aot.DTYPES:
            shape = (1, frames, aot.TOKENS // frames, width)
            x = torch.empty(shape, dtype=dtype, device="meta")
            m = new_fp32(x, 1, frames, 3 * width)[..., :width]  # a chunk of a projection
            stats = stats_like(x)
            label = f"{network} 720p D={width} {'per frame ' if frames > 1 else ''}{short}"
            found += aot.cases("adaln_modulate", label, adaln_modulate, x, m, m, 1e-6)
            found += aot.cases("adaln_modulate_backward", label, adaln_modulate_backward, x, x, stats, m)
            found += aot.cases("gated_residual_adaln", label, gated_residual_adaln, x, x, m, m, m, 1e-6)
            for grad_x_new in (x, None):  # None: nothing but the normalised stream is used
                saved = (grad_x_new, x, x, x, stats, m, m)
                name = "gated_residual_adaln_backward"
                found += aot.cases(name, label, gated_residual_adaln_backward, *saved)
    return found
