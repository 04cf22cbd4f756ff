"""Adaptive LayerNorm and RMSNorm in Triton. See fused.py for what the functions take and return.

A program runs over a few neighbouring rows of one group with the group's modulation in registers: read again
for every row, the fp32 modulation would cost more cache bandwidth than the rows cost memory bandwidth.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aot
from ..elements import new_fp32, nothing
from ..launch import launch
from ..library import is_wanted
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
    RMS: tl.constexpr,
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
        if RMS:
            mean = 0.0
            centred = value
        else:
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
    RMS: tl.constexpr,
    WANTED: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dgate, dshift and dscale get this program's rows' share: [groups, programs, D]. What WANTED has no bit
    for, of dx, dy, dgate, dshift and dscale in turn, is left out."""
    DX: tl.constexpr = WANTED % 2 == 1
    DY: tl.constexpr = WANTED // 2 % 2 == 1
    DGATE: tl.constexpr = WANTED // 4 % 2 == 1
    DSHIFT: tl.constexpr = WANTED // 8 % 2 == 1
    DSCALE: tl.constexpr = WANTED // 16 % 2 == 1
    group, first = _place(rows, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    factor = 1.0 + tl.load(scale + group * scale_stride + columns, mask=inside, other=0.0)
    if DSHIFT:
        shift_sum = tl.zeros([BLOCK], tl.float32)
    if DSCALE:
        scale_sum = tl.zeros([BLOCK], tl.float32)
    if DGATE:
        gate_sum = tl.zeros([BLOCK], tl.float32)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        index = group * rows + row
        at = index * D + columns
        mean = tl.load(stats + 2 * index)
        rstd = tl.load(stats + 2 * index + 1)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (value - mean) * rstd, 0.0)
        slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if DSHIFT:
            shift_sum += slope
        if DSCALE:
            scale_sum += slope * normed
        if DX or DY or DGATE:
            slope *= factor
            # Both sums before the row's result: with more of it alive at once, a wide fp32 row would spill.
            along_one = 0.0
            if not RMS:
                along_one = tl.sum(slope, 0) * (1.0 / D)
            along_normed = tl.sum(slope * normed, 0) * (1.0 / D)
            result = rstd * (slope - along_one - normed * along_normed)
            if RESIDUAL:
                result += tl.load(grad_x_new + at, mask=inside, other=0.0).to(tl.float32)
            if DX:
                tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
            if DY:
                # Read for every row: with four rows of channels in registers already, a fifth would spill.
                gates = tl.load(gate + group * gate_stride + columns, mask=inside, other=0.0)
                tl.store(dy + at, (gates * result).to(dy.dtype.element_ty), mask=inside)
            if DGATE:
                gate_sum += result * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    here = tl.program_id(0).to(tl.int64) * D + columns
    if DSHIFT:
        tl.store(dshift + here, shift_sum, mask=inside)
    if DSCALE:
        tl.store(dscale + here, scale_sum, mask=inside)
    if DGATE:
        tl.store(dgate + here, gate_sum, mask=inside)


@triton.jit
def residual_forward(
    x, y, gate, out, rows, gate_stride, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    group, first = _place(rows, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    gates = tl.load(gate + group * gate_stride + columns, mask=inside, other=0.0)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        at = (group * rows + row) * D + columns
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value += gates * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def residual_backward(
    grad,
    y,
    gate,
    dy,
    dgate,
    rows,
    gate_stride,
    DY: tl.constexpr,
    DGATE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dgate gets this program's rows' share: [groups, programs, D]."""
    group, first = _place(rows, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    gates = tl.load(gate + group * gate_stride + columns, mask=inside, other=0.0)
    if DGATE:
        gate_sum = tl.zeros([BLOCK], tl.float32)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        at = (group * rows + row) * D + columns
        slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if DY:
            tl.store(dy + at, (gates * slope).to(dy.dtype.element_ty), mask=inside)
        if DGATE:
            gate_sum += slope * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    if DGATE:
        tl.store(dgate + tl.program_id(0).to(tl.int64) * D + columns, gate_sum, mask=inside)


def _warps(block: int, channels: int) -> int:
    """Enough that a thread has that many channels, so that its registers hold their modulation as well."""
    return min(16, max(1, block // (32 * channels)))


def _forward(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    rms: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    groups, rows, width = layout(x)
    block = triton.next_power_of_2(width)
    x_new = None if y is None else new_like(x)
    out = new_like(x, dtype)
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
        RMS=rms,
        D=width,
        BLOCK=block,
        ROWS=4,
        num_warps=_warps(block, 16),
    )
    return x_new, out, stats


def _chunks(x: Tensor) -> tuple[int, int]:
    """Rows that a program adds up, and how many such there are in a group."""
    groups, rows, _ = layout(x)
    per_program = rows_per_program(groups * rows)
    return per_program, triton.cdiv(rows, per_program)


def _total(partials: Tensor | None, x: Tensor, of: Tensor) -> Tensor:
    """The sum over programs for each row of ``of``, nothing for None."""
    return new_fp32(x, 0) if partials is None else total(partials, new_fp32(x, *of.shape))


def _backward(
    grad_x_new: Tensor | None,
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    stats: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    rms: bool,
    dtype: torch.dtype | None,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    groups, rows, width = layout(x)
    block = triton.next_power_of_2(width)
    per_program, chunks = _chunks(x)
    dx = new_like(x) if is_wanted(wanted, 0) else nothing(x)
    dy = new_like(x, dtype) if is_wanted(wanted, 1) else nothing(x, dtype)
    sums = [new_fp32(x, groups, chunks, width) if is_wanted(wanted, i) else None for i in (2, 3, 4)]
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
        dx if is_wanted(wanted, 0) else None,
        dy if is_wanted(wanted, 1) else None,
        *sums,
        rows,
        0 if gate is None else distance(gate),
        distance(scale),
        GATED=gate is not None,
        RESIDUAL=grad_x_new is not None,
        RMS=rms,
        WANTED=wanted,
        D=width,
        BLOCK=block,
        ROWS=per_program,
        num_warps=_warps(block, 8),
    )
    dgate, dshift, dscale = (_total(part, x, scale) for part in sums)
    return dx, dy, dgate, dshift, dscale


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, rms: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    _, out, stats = _forward(x, None, None, shift, scale, eps, rms, dtype)
    return out, stats


def adaln_modulate_backward(
    grad: Tensor, x: Tensor, stats: Tensor, scale: Tensor, rms: bool, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    bits = (wanted & 0b1) | (wanted & 0b110) << 2
    dx, _, _, dshift, dscale = _backward(None, grad, x, None, stats, None, scale, rms, None, bits)
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
    x_new, out, stats = _forward(x, y, gate, shift, scale, eps, rms, dtype)
    assert x_new is not None
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
    return _backward(grad_x_new, grad, x_new, y, stats, gate, scale, rms, dtype, wanted)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    groups, rows, width = layout(x)
    block = triton.next_power_of_2(width)
    out = new_like(x)
    grid = (groups * triton.cdiv(rows, 4),)
    shape = {"D": width, "BLOCK": block, "ROWS": 4, "num_warps": _warps(block, 16)}
    launch(residual_forward, grid, x, y, gate, out, rows, distance(gate), **shape)
    return out


def gated_residual_backward(
    grad: Tensor, y: Tensor | None, gate: Tensor, dtype: torch.dtype | None, wanted: int
) -> tuple[Tensor, Tensor]:
    groups, rows, width = layout(grad)
    block = triton.next_power_of_2(width)
    per_program, chunks = _chunks(grad)
    dy = new_like(grad, dtype) if is_wanted(wanted, 0) else nothing(grad, dtype)
    part = new_fp32(grad, groups, chunks, width) if is_wanted(wanted, 1) else None
    launch(
        residual_backward,
        (groups * chunks,),
        grad,
        y,
        gate,
        dy if is_wanted(wanted, 0) else None,
        part,
        rows,
        distance(gate),
        DY=is_wanted(wanted, 0),
        DGATE=is_wanted(wanted, 1),
        D=width,
        BLOCK=block,
        ROWS=per_program,
        num_warps=_warps(block, 8),
    )
    return dy, _total(part, grad, gate)


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
            found += aot.cases("adaln_modulate", label, adaln_modulate, x, m, m, 1e-6, False, None)
            saved: tuple[Any, ...] = (x, x, stats, m, False, 0b111)
            found += aot.cases("adaln_modulate_backward", label, adaln_modulate_backward, *saved)
            given = (x, x, m, m, m, 1e-6, False, None)
            found += aot.cases("gated_residual_adaln", label, gated_residual_adaln, *given)
            for grad_x_new in (x, None):  # None: nothing but the normalised stream is used
                saved = (grad_x_new, x, x, x, stats, m, m, False, None, 0b11111)
                name = "gated_residual_adaln_backward"
                found += aot.cases(name, label, gated_residual_adaln_backward, *saved)
            found += aot.cases("gated_residual", label, gated_residual, x, x, m)
            saved = (x, x, m, None, 0b11)
            found += aot.cases("gated_residual_backward", label, gated_residual_backward, *saved)
    return found
