"""No launch has more programs than CUDA takes: 2^31 - 1 along the first axis, 65,535 along the others."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill.ops.launch import Launch, record

pytestmark = pytest.mark.needs("triton")

WIDTH = 64
MANY = (1 << 16, 1 << 20)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Long clips under one noise level, and modulation by token: 24 latent frames of 720p have 84,480.
@pytest.mark.parametrize(("groups", "rows"), [(1, 1 << 20), (16, 1 << 20), (84_480, 1), (1 << 20, 3)])
def test_adaln(groups: int, rows: int) -> None:
    kernels: Any = importlib.import_module("cosmos_distill.ops.adaln.triton")
    x, m = empty(1, groups, rows, WIDTH, dtype=torch.bfloat16), empty(1, groups, WIDTH)
    stats = empty(1, groups, rows, 2)
    with record(90) as launches:
        kernels.adaln_modulate(x, m, m, 1e-6, False, None)
        kernels.adaln_modulate_backward(x, x, stats, m, False, 0b111)
        kernels.gated_residual_adaln(x, x, m, m, m, 1e-6, False, None)
        kernels.gated_residual_adaln_backward(x, x, x, x, stats, m, m, False, None, 0b11111)
        kernels.gated_residual(x, x, m)
        kernels.gated_residual_backward(x, x, m, None, 0b11)
    assert len(launches) == 2 + 2 + 5 + 1 + 2  # with a sum of partial sums for each gradient of modulation
    assert_taken(launches)


@pytest.mark.parametrize("samples", MANY)
def test_attention(samples: int) -> None:
    kernels: Any = importlib.import_module("cosmos_distill.ops.attn.triton")
    q, k = (empty(samples, length, 3, WIDTH, dtype=torch.bfloat16) for length in (200, 5))
    lse = empty(samples, 3, 200)
    with record(90) as launches:
        kernels.attention(q, k, k, 0.1)
        kernels.attention_backward(q, lse, q, k, k, q, lse, 0.1, 0b111)
    assert len(launches) == 1 + 3
    assert_taken(launches)


@pytest.mark.parametrize("samples", MANY)
def test_dm_loss(samples: int) -> None:
    kernels: Any = importlib.import_module("cosmos_distill.ops.dm_loss.triton")
    x, one = empty(samples, 2, 3, 40, 40), empty(samples)
    with record(90) as launches:
        kernels.renoise(x, x, one, one)
        kernels.vsd(x, x, x, None, None, 1.0, None, None)
        kernels.vsd_gradient(x, one)
        kernels.squared_error(x, x, None, None, None)
        kernels.squared_error_gradient(one, x, x, None, None, None)
    assert len(launches) == 5 + 2  # with a sum of partial sums for each loss
    assert_taken(launches)


def assert_taken(launches: list[Launch]) -> None:
    for one in launches:
        first, *others = one.grid
        assert first < 2**31 and all(count <= 65_535 for count in others), (one.kernel.__name__, one.grid)
