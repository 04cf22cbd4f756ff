"""The CUDA operators, emulated, are told where elements lie whatever strides axes of one element have."""

from __future__ import annotations

import pytest
import torch

from tests.ops.layouts import LAYOUTS, assert_laid_out_as_one_likes, with_axes_of_one_element

pytestmark = pytest.mark.usefixtures("emulated_cuda")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", with_axes_of_one_element())
def test_strides_of_axes_of_one_element_say_nothing(name: str, layout: str):
    dtype = torch.bfloat16 if name.startswith("attention") else torch.float32  # tensor cores take no fp32
    assert_laid_out_as_one_likes(name, layout, "cuda", dtype)
