"""Per-head RMSNorm of queries and keys with rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from benchmarks.sizes import CASES, FP32, TRANSFER1, Size, over
from cosmos_distill import ops
from cosmos_distill.models.common.position import rotary_tables


def eager_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    first, second = normed.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (normed * cos[:, None] + rotated * sin[:, None]).to(x.dtype)


# Of Transfer1's 2,048 tokens: (t, h, w), and how many of a head's angles each axis has.
GRID, COUNTS = (8, 16, 16), (22, 21, 21)
HEADS_OF_64 = Size("heads of 64", 1, 2048, 32, 64)


@over([*CASES, (HEADS_OF_64, FP32, True)])
def bench_qk_norm_rope(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    angles = torch.randn(size.tokens, size.head_dim // 2).repeat(1, 2)
    tables = {"cos": angles.cos(), "sin": angles.sin()}
    compare(benchmark, "qk_norm_rope", size, dtype, backward, tables, tables)


@over([(TRANSFER1, FP32, False), (TRANSFER1, FP32, True)])
def bench_angles(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    """From the angles of the axes, as the networks call it; plain torch is given the tables."""
    t, h, w = (torch.randn(length, count) for length, count in zip(GRID, COUNTS, strict=True))
    angles = t, h, w
    tables = dict(zip(("cos", "sin"), rotary_tables(angles), strict=True))
    compare(benchmark, "qk_norm_rope, angles", size, dtype, backward, {"angles": angles}, tables)


def compare(
    benchmark: BenchmarkFixture,
    name: str,
    size: Size,
    dtype: torch.dtype,
    backward: bool,
    rotation: dict[str, Any],
    tables: dict[str, Tensor],
) -> None:
    """``rotation`` is what the operator is given, ``tables`` what plain torch is."""
    shape = size.batch, size.tokens, size.heads, size.head_dim
    q, k = (torch.randn(shape, dtype=dtype) for _ in range(2))
    weights = [torch.randn(size.head_dim) for _ in range(2)]

    def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str | None = None):
        return ops.qk_norm_rope(q, k, q_weight, k_weight, backend=backend, **rotation)

    def eager(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor):
        return eager_norm_rope(q, q_weight, **tables), eager_norm_rope(k, k_weight, **tables)

    measure(
        benchmark,
        name,
        operator,
        (q, k, *weights),
        eager=eager,
        backward=backward,
        size=str(size),
        # For q and k each, forward: in, out; backward: grad and input in, gradient out.
        passes=10 if backward else 4,
    )
