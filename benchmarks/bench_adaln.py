"""Adaptive LayerNorm, alone and after the gated residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from benchmarks.sizes import Size, over_cases
from cosmos_distill import ops


def eager_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    shift, scale = (m.to(x.dtype).unsqueeze(1) for m in (shift, scale))
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def eager_gated(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    x = x + gate.to(x.dtype).unsqueeze(1) * y
    return x, eager_modulate(x, shift, scale)


@over_cases
def bench_adaln_modulate(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    x = torch.randn(size.batch, size.tokens, size.width, dtype=dtype)
    modulation = [torch.randn(size.batch, size.width) for _ in range(2)]
    measure(
        benchmark,
        "adaln_modulate",
        ops.adaln_modulate,
        (x, *modulation),
        eager=eager_modulate,
        backward=backward,
        size=str(size),
        # Forward: x in, out. Backward: grad and x in, dx out. Modulation is negligible beside them.
        passes=5 if backward else 2,
    )


@over_cases
def bench_gated_residual(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    x, y = (torch.randn(size.batch, size.tokens, size.width, dtype=dtype) for _ in range(2))
    modulation = [torch.randn(size.batch, size.width) for _ in range(3)]
    measure(
        benchmark,
        "gated_residual_adaln",
        ops.gated_residual_adaln,
        (x, y, *modulation),
        eager=eager_gated,
        backward=backward,
        size=str(size),
        # Forward: x and y in, x_new and h out. Backward: both gradients, x_new and y in, dx and dy out.
        passes=10 if backward else 4,
    )
