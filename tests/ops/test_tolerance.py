"""The rule passes what is as good as torch, and nothing else, even of a single number."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("size", "factor", "dtype", "fails"),
    [
        (1, 1.0, FP32, False),
        (1, 1 + 1e-7, FP32, False),
        (1, 1 + 4e-7, FP32, True),
        (1000, 1 + 4e-7, FP32, True),
        (1000, float("nan"), FP32, True),
        (1, 1.0, BF16, False),
        (1, 1.03, BF16, True),
    ],
)
def test_a_factor(size: int, factor: float, dtype: torch.dtype, fails: bool):
    def operator(x: Tensor, y: Tensor, backend: str) -> Tensor:
        return x * y * (factor if backend == "ours" else 1)

    def case(seed: int) -> Case:
        numbers = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
        return operator, numbers[:2], numbers[2:]

    with pytest.raises(AssertionError, match="error") if fails else contextlib.nullcontext():
        assert_as_good_as_torch(draws(case), "ours", dtype)


def test_one_draw_among_many():
    def case(seed: int) -> Case:
        x = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        return lambda x, backend: x * (1.0001 if backend == "ours" and seed == 5 else 1), [x], [x]

    with pytest.raises(AssertionError, match="output 0"):
        assert_as_good_as_torch(draws(case), "ours")
