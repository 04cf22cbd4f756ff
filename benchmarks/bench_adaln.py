"""Adaptive LayerNorm, alone and after the gated residual."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from benchmarks.sizes import CASES, TRANSFER1, Size, over
from cosmos_distill import ops


def eager_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    shift, scale = (m.to(x.dtype).unsqueeze(-2) for m in (shift, scale))
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def eager_gated(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    x = x + gate.to(x.dtype).unsqueeze(-2) * y
    return x, eager_modulate(x, shift, scale)


@over(CASES)
def bench_adaln_modulate(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    x = torch.randn(size.shape, dtype=dtype)
    modulation = [torch.randn(*size.groups, size.width) for _ in range(2)]
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


@over(CASES)
def bench_gated_residual(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    x, y = (torch.randn(size.shape, dtype=dtype) for _ in range(2))
    modulation = [torch.randn(*size.groups, size.width) for _ in range(3)]
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


def eager_mixed(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As model code has it under torch.autocast: an fp32 residual stream, everything else in bf16."""
    x = x + gate.unsqueeze(-2) * y
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x, (normed * (1 + scale.unsqueeze(-2)) + shift.unsqueeze(-2)).to(y.dtype)


@over([(TRANSFER1, torch.bfloat16, backward) for backward in (False, True)])
def bench_mixed_residual(benchmark: BenchmarkFixture, size: Size, dtype: torch.dtype, backward: bool) -> None:
    x, y = torch.randn(size.shape), torch.randn(size.shape, dtype=dtype)
    modulation = [torch.randn(*size.groups, size.width, dtype=dtype) for _ in range(3)]
    measure(
        benchmark,
        "gated_residual_adaln, bf16 branch",
        partial(ops.gated_residual_adaln, dtype=dtype),
        (x, y, *modulation),
        eager=eager_mixed,
        backward=backward,
        size=str(size),
        # Forward: x and half as much of y in, x_new and half as much of h out. Backward: both gradients,
        # x_new and y in, dx and dy out.
        passes=7 if backward else 3,
    )
