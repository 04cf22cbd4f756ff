"""csrc/adaln.cu, emulated, through the public operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.calls import assert_alone_as_together
from tests.ops.modulation import (
    MIXES,
    assert_a_nan_stays_in_its_row,
    assert_mixed_dtypes_as_good_as_torch,
    assert_sums_are_rounded_to_nearest,
    tokens,
)
from tests.ops.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("emulated_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 11, 96),  # wide loads, less than a warp's worth
        (3, 2, 9, 37),  # odd rows, no wide loads, more than one chunk
        (1, 3, 4104),  # several columns for each thread
        (2, 0, 8),
    ],
)
def test_as_good_as_torch(shape: tuple[int, ...], dtype: torch.dtype):
    x, y, (gate, shift, scale) = tokens(shape)
    grads = tokens(shape, 1)[:2]
    assert_as_good_as_torch([(ops.adaln_modulate, (x, shift, scale), (y,))], "cuda", dtype)
    gated = ops.gated_residual_adaln, (x, y, gate, shift, scale), grads
    assert_as_good_as_torch([gated], "cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_sums_are_rounded_to_nearest(dtype: torch.dtype):
    assert_sums_are_rounded_to_nearest("cuda", dtype)


def test_rows_wider_than_shared_memory():
    x, y, modulation = tokens((1, 2, 25000))
    gated = ops.gated_residual_adaln, (x, y, *modulation), tokens((1, 2, 25000), 1)[:2]
    assert_as_good_as_torch([gated], "cuda")


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("aligned", [True, False])
def test_slices_of_a_wider_modulation_and_an_unused_output(aligned: bool, output: int):
    x, y, _ = tokens((2, 3, 8, 12))
    wide = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(2))
    wide = wide[..., :36] if aligned else wide[..., 1:37]

    def operator(x: Tensor, y: Tensor, wide: Tensor, backend: str) -> Tensor:
        return ops.gated_residual_adaln(x, y, *wide.chunk(3, -1), backend=backend)[output]

    assert_as_good_as_torch([(operator, (x, y, wide), tokens(x.shape, 1)[:1])], "cuda")


def test_a_nan_is_shown():
    assert_a_nan_stays_in_its_row("cuda")


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [((2, 3, 37), "layer"), ((1, 2, 9, 24), "rms")])
def test_mixed_dtypes(shape: tuple[int, ...], mix: tuple[Any, Any, Any], norm: str):
    assert_mixed_dtypes_as_good_as_torch("cuda", shape, mix, norm)


def test_what_is_not_asked_for_is_left_out():
    x, y, rows = tokens((2, 11, 24))
    for operator, tensors in (
        (ops.adaln_modulate, [x, *rows[1:]]),
        (ops.gated_residual, [x, y, rows[0]]),
        (ops.gated_residual_adaln, [x, y, *rows]),
    ):
        assert_alone_as_together(operator, tensors, "cuda")
