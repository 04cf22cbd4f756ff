"""Distribution matching: noise on the student's samples, the loss of the fake score network on them, and the
student's loss from both networks' outputs."""

from __future__ import annotations

import itertools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from cosmos_distill import ops

SHAPE = (1, 16, 24, 88, 160)  # latents of 704 x 1280 pixels
GUIDANCE, SKIP, OUT = 5.0, 0.3, 0.7


CASES = [
    *itertools.product([True, False], [torch.float32, torch.bfloat16], [False, True]),
    (True, torch.float16, True),
]


IDS = [f"{'student' if r else 'x0'}-{str(dtype)[6:]}-{'fwd+bwd' if b else 'fwd'}" for r, dtype, b in CASES]


@pytest.mark.parametrize(("raw", "dtype", "backward"), CASES, ids=IDS)
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


def bench_renoise(benchmark: BenchmarkFixture) -> None:
    x0, eps, sigma = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.7])

    def operator(x0: Tensor, eps: Tensor, backend: str | None = None) -> Tensor:
        return ops.renoise(x0, eps, sigma, backend=backend)

    def eager(x0: Tensor, eps: Tensor) -> Tensor:
        return x0 + sigma[:, None, None, None, None] * eps

    size = "x".join(map(str, SHAPE))
    measure(benchmark, "renoise", operator, (x0, eps), eager=eager, backward=False, size=size, passes=3)


def bench_fake_score_loss(benchmark: BenchmarkFixture) -> None:
    """Of the network's denoised samples, as both take them."""
    x, student, sigma = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0.7])

    def operator(x: Tensor, backend: str | None = None) -> Tensor:
        return ops.fake_score_loss(x, student, sigma, backend=backend)

    def eager(x: Tensor) -> Tensor:
        return (student - x).square().mean(dim=(1, 2, 3, 4)) / sigma.square()

    size = "x".join(map(str, SHAPE))
    # Forward: both in. Backward: both in, the gradient out.
    measure(benchmark, "fake_score_loss", operator, (x,), eager=eager, backward=True, size=size, passes=5)
