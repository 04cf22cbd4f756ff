"""The CUDA operators, emulated, under torch.compile."""

from __future__ import annotations

import pytest
import torch

from tests.ops.calls import (
    assert_compiles_whole,
    assert_traced_as_it_is,
    assert_whatever_the_default,
    public,
)

pytestmark = pytest.mark.usefixtures("emulated_cuda")


def dtype(name: str) -> torch.dtype:
    """Tensor cores take no fp32."""
    return torch.bfloat16 if name.startswith("attention") else torch.float32


@pytest.mark.parametrize("name", public())
def test_every_operator_compiles_whole(name: str):
    assert_compiles_whole(name, "cuda", dtype(name))


@pytest.mark.parametrize("name", public())
def test_fake_tensors_have_the_shapes_of_real_ones(name: str):
    assert_traced_as_it_is(name, "cuda", dtype(name))


@pytest.mark.parametrize("name", public())
def test_the_default_dtype_changes_nothing(name: str):
    assert_whatever_the_default(torch.float64, name, "cuda", dtype(name))
