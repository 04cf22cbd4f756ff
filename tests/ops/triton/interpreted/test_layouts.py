"""Triton's kernels are told where elements lie whatever strides axes of one element have."""

from __future__ import annotations

import pytest

from tests.ops.layouts import LAYOUTS, assert_laid_out_as_one_likes, with_axes_of_one_element

# Attention's are told every stride, and take most of the interpreter's time.
NAMES = [name for name in with_axes_of_one_element() if not name.startswith("attention")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_strides_of_axes_of_one_element_say_nothing(name: str, layout: str):
    assert_laid_out_as_one_likes(name, layout, "triton")
