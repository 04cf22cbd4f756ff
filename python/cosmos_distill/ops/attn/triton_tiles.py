"""Tiles of tokens in Triton: [rows, head size], of which some rows and columns may not exist."""

from __future__ import annotations

import triton
import triton.language as tl


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
