"""Per-head RMSNorm of queries and keys with rotary embedding."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from benchmarks.sizes import Size, over_cases
from cosmos_distill import ops


def eager_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    first, second = normed.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (normed * cos[:, None] + rotated * sin[:, None]).to(x.dtype)


@over_cases
def bench_qk_norm_rope(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    shape = size.batch, size.tokens, size.heads, size.head_dim
    q, k = (torch.randn(shape, dtype=dtype) for _ in range(2))
    weights = [torch.randn(size.head_dim) for _ in range(2)]
    angles = torch.randn(size.tokens, size.head_dim // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str | None = None):
        return ops.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, backend=backend)

    def eager(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor):
        return eager_norm_rope(q, q_weight, cos, sin), eager_norm_rope(k, k_weight, cos, sin)

    measure(
        benchmark,
        "qk_norm_rope",
        operator,
        (q, k, *weights),
        eager=eager,
        backward=backward,
        size=str(size),
        # For q and k each, forward: in, out; backward: grad and input in, gradient out.
        passes=10 if backward else 4,
    )
