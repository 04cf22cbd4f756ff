"""The second step of deterministic sums in Triton: what programs left is added up in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


@triton.jit
def sum_partials(partials, out, chunks, width, BLOCK_CHUNKS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """out[g, i] = sum over c of partials[g, c, i], fp32."""
    group = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    rows = tl.arange(0, BLOCK_CHUNKS)
    base = partials + group * chunks * width
    total = tl.zeros([BLOCK_CHUNKS, BLOCK_WIDTH], tl.float32)
    for first in range(0, chunks, BLOCK_CHUNKS):
        row = first + rows
        inside = (row < chunks)[:, None] & (columns < width)[None, :]
        total += tl.load(base + row.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)
    tl.store(out + group * width + columns, tl.sum(total, 0), mask=columns < width)


def total(partials: Tensor, out: Tensor) -> Tensor:
    """Add partials [groups, chunks, width] up over chunks, into out [groups, width] or of any shape alike."""
    groups, chunks, width = partials.shape
    block = min(32, triton.next_power_of_2(width))
    launch(
        sum_partials,
        (groups, triton.cdiv(width, block)),
        partials,
        out,
        chunks,
        width,
        BLOCK_CHUNKS=4096 // block,
        BLOCK_WIDTH=block,
        num_warps=4,
    )
    return out


def rows_per_program(rows: int) -> int:
    """Of a sum over rows: enough programs to fill a GPU, yet few partial sums beside the rows themselves."""
    for per_program in (64, 32):
        if rows >= 1024 * per_program:
            return per_program
    return 16
