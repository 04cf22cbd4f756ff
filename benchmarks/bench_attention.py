"""Attention with its log-sum-exp, as context parallelism and selective checkpointing use it.

Bound by arithmetic, which torch's flash attention does well.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.harness import measure
from cosmos_distill import ops

SHAPE = (1, 1024, 8, 128)


def operator(q: Tensor, k: Tensor, v: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return ops.attention(q, k, v, return_lse=True, backend=backend)


def eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(q.shape[-1])
    return (F.softmax(scores, dim=-1) @ v.transpose(1, 2)).transpose(1, 2), torch.logsumexp(scores, dim=-1)


@pytest.mark.parametrize("backward", [False, True], ids=["fwd", "fwd+bwd"])
def bench_attention_lse(benchmark: BenchmarkFixture, backward: bool) -> None:
    q, k, v = (torch.randn(SHAPE) for _ in range(3))
    measure(
        benchmark,
        "attention with lse",
        operator,
        (q, k, v),
        eager=eager,
        backward=backward,
        size="x".join(map(str, SHAPE)),
        passes=None,
    )


@pytest.mark.parametrize("backward", [False, True], ids=["fwd", "fwd+bwd"])
def bench_unused_lse(benchmark: BenchmarkFixture, backward: bool) -> None:
    """What the log-sum-exp costs while nothing uses it: plain torch is its attention without one."""

    def without(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    q, k, v = (torch.randn(SHAPE) for _ in range(3))
    measure(
        benchmark,
        "attention with lse against SDPA without",
        lambda q, k, v, backend=None: operator(q, k, v, backend)[0],
        (q, k, v),
        eager=without,
        backward=backward,
        size="x".join(map(str, SHAPE)),
        passes=None,
    )
