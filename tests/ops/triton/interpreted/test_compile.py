"""Triton's kernels under torch.compile."""

from __future__ import annotations

import pytest
import torch

from tests.ops.calls import (
    assert_compiles_whole,
    assert_traced_as_it_is,
    assert_whatever_the_default,
    public,
)


@pytest.mark.parametrize("name", public())
def test_every_operator_compiles_whole(name: str):
    assert_compiles_whole(name, "triton")


@pytest.mark.parametrize("name", public())
def test_fake_tensors_have_the_shapes_of_real_ones(name: str):
    assert_traced_as_it_is(name, "triton")


@pytest.mark.parametrize("name", public())
def test_the_default_dtype_changes_nothing(name: str):
    assert_whatever_the_default(torch.float64, name, "triton")
