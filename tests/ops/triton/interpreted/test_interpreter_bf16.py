"""What the other tests of this folder rest on: fails where the interpreter is wrong about bf16 again."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def multiply(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    product = tl.dot(tl.load(a + at), tl.trans(tl.load(b + at)))
    tl.store(out + at, product)


@triton.jit
def copy(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def double(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(out + at, value + value)


@triton.jit
def add_up(x, out, SIZE: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, SIZE)), 0))


def test_products_are_of_values():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=draw).bfloat16() for _ in range(2))
    out = torch.full((16, 16), float("nan"))
    multiply[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float().T)


def test_conversions_are_those_of_torch():
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-23, 3.4e38, -3.4e38])
    special = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 2**-133, 1.5 * 2**-133]
    )
    many = torch.randn(256 - 14, generator=torch.Generator().manual_seed(0)) * 1e3
    x = torch.cat([ties, special, many])
    narrow, back = torch.empty(256, dtype=torch.bfloat16), torch.empty(256)
    copy[(1,)](x, narrow, SIZE=256)
    torch.testing.assert_close(narrow, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    copy[(1,)](narrow, back, SIZE=256)
    torch.testing.assert_close(back, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", [double, add_up])
def test_arithmetic_in_bf16_is_refused(kernel):
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match="of bf16: convert to fp32 first"):
        kernel[(1,)](x, torch.empty_like(x), SIZE=16)
