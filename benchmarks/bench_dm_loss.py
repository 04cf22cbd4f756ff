"""The student's phase of distribution matching: the loss from the networks' outputs, and its gradient."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from cosmos_distill import ops

SHAPE = (1, 16, 24, 88, 160)  # latents of 704 x 1280 pixels
GUIDANCE, SKIP, OUT = 5.0, 0.3, 0.7


@pytest.mark.parametrize("backward", [False, True], ids=["fwd", "fwd+bwd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("raw", [True, False], ids=["student", "x0"])
def bench_vsd_loss(benchmark: BenchmarkFixture, raw: bool, dtype: torch.dtype, backward: bool) -> None:
    x, teacher, fake, uncond, x_t = (torch.randn(SHAPE, dtype=dtype) for _ in range(5))
    options = {}
    if raw:
        where = ops.Preconditioned(x_t, torch.tensor([SKIP]), torch.tensor([OUT]))
        options = {"uncond": uncond, "guidance": GUIDANCE, "preconditioned": where}

    def operator(x: Tensor, backend: str | None = None) -> Tensor:
        return ops.vsd_loss(x, teacher, fake, backend=backend, **options)

    def eager(x: Tensor) -> Tensor:
        """As published code has it, in fp32."""
        with torch.no_grad():
            p, f = teacher.float(), fake.float()
            if raw:
                p = p + GUIDANCE * (p - uncond.float())
                p, f = (SKIP * x_t.float() + OUT * raw_x0 for raw_x0 in (p, f))
            distance = (x.float() - p).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
            target = x.float() - (f - p) / distance.clamp(min=1e-5)
        return 0.5 * (x.float() - target).square().mean(dim=(1, 2, 3, 4))

    measure(
        benchmark,
        "vsd_loss, " + ("guided, raw outputs" if raw else "x0"),
        operator,
        (x,),
        eager=eager,
        backward=backward,
        size="x".join(map(str, SHAPE)),
        # Forward: the inputs in, the direction out. Backward: the direction in, the gradient out.
        passes=(6 if raw else 4) + (2 if backward else 0),
    )
