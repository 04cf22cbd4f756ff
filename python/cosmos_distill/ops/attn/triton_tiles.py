"""Tiles of tokens in Triton: [rows, head size], of which some rows and columns may not exist. And which of
them is a program's own."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_MOST = 65_535
"""Programs that a grid takes along its second and third axis."""


def batch_axis(x: Tensor) -> int:
    """The axis of the grid for x [B, S, H, D] that samples lie on: the last, so that a head's programs come
    one after the other and find its keys in the cache; the first if they are many, and therefore short."""
    return 2 if x.shape[0] <= _MOST else 0


def grid(x: Tensor, block: int) -> tuple[int, ...]:
    """A program for every ``block`` rows of every head of x [B, S, H, D]."""
    batch, rows, heads, _ = x.shape
    sizes = triton.cdiv(rows, block), heads, batch
    return sizes if batch_axis(x) == 2 else sizes[::-1]


@triton.jit
def place(BLOCK_ROWS: tl.constexpr, BATCH_AXIS: tl.constexpr):
    """This program's first row, head and sample."""
    first = tl.program_id(2 - BATCH_AXIS) * BLOCK_ROWS
    return first, tl.program_id(1).to(tl.int64), tl.program_id(BATCH_AXIS).to(tl.int64)


@triton.jit
def tile(at, left, EVEN: tl.constexpr, D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile at these pointers; zeros beyond the ``left`` rows (all exist if EVEN) and D columns."""
    if EVEN and D == BLOCK_D:
        values = tl.load(at)
    elif EVEN:
        values = tl.load(at, mask=(tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)
    elif D == BLOCK_D:
        values = tl.load(at, mask=(tl.arange(0, BLOCK_ROWS) < left)[:, None], other=0.0)
    else:
        inside = (tl.arange(0, BLOCK_ROWS) < left)[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
        values = tl.load(at, mask=inside, other=0.0)
    return values


@triton.jit
def store_tile(at, values, left, D: tl.constexpr):
    """Write what exists of a tile, rounded to what is stored there."""
    inside = (tl.arange(0, values.shape[0]) < left)[:, None] & (tl.arange(0, values.shape[1]) < D)[None, :]
    tl.store(at, values.to(at.dtype.element_ty), mask=inside)
