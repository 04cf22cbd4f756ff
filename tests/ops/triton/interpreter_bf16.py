"""Makes Triton's interpreter honest about bf16.

The interpreter keeps bf16 as the 16 bits of an unsigned integer and computes with those: products, sums and
comparisons are of bit patterns, and rounding cuts off. It says nothing (triton-lang/triton issues 10945,
11584, 11604). Kernels that compute in fp32 need two things of bf16, which are put right here: conversions
from and to fp32, rounding to nearest, even on ties; and matrix products. Anything else with bf16 raises
instead of being wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


class Bf16Unsupported(TypeError):
    """The interpreter was asked for arithmetic in bf16."""


def to_fp32(bits: np.ndarray) -> np.ndarray:
    """The values of bf16 numbers: fp32 has the same leading bits."""
    return np.left_shift(np.asarray(bits, dtype=np.uint32), 16, dtype=np.uint32).view(np.float32)


def from_fp32(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bf16 numbers."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = bits >> 16
    # Half of the last kept place, less one where that place is even: then it carries exactly when it should.
    rounded = ((bits.astype(np.uint64) + 0x7FFF + (upper & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), upper | 0x40, rounded).astype(np.uint16)  # a NaN stays one


def _is_bf16(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and getattr(dtype, "scalar", dtype) == tl.bfloat16


def _refusing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        flat = [a for group in args for a in (group if isinstance(group, (tuple, list)) else (group,))]
        if any(_is_bf16(a) for a in flat):
            raise Bf16Unsupported(f"{name} of bf16: convert to fp32 first")
        return function(self, *args, **options)

    return checked


def install() -> None:
    """Patch the interpreter of this process, once."""
    builder = interpreter.InterpreterBuilder
    stock_convert, stock_cast, stock_dot = interpreter._convert_float, builder.cast_impl, builder.create_dot

    def convert(data: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: Any) -> np.ndarray:
        if (source, target) == (tl.bfloat16, tl.float32):
            return to_fp32(data)
        if (source, target) == (tl.float32, tl.bfloat16) and rounding in (
            None,
            interpreter._ir.ROUNDING_MODE.RTNE,
        ):
            return from_fp32(data.view(np.float32))
        if tl.bfloat16 in (source, target):
            raise Bf16Unsupported(f"conversion from {source} to {target}, rounding {rounding}")
        return stock_convert(data, source, target, rounding)

    def cast(self: Any, value: Any, target: tl.dtype) -> Any:
        pair = {value.dtype.scalar, target.scalar}
        if tl.bfloat16 in pair and tl.float32 not in pair:
            raise Bf16Unsupported(f"conversion from {value.dtype} to {target}")
        return stock_cast(self, value, target)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (interpreter.TensorHandle(to_fp32(x.data), tl.float32) if _is_bf16(x) else x for x in (a, b))
        return stock_dot(self, a, b, *rest)

    interpreter._convert_float = convert
    builder.cast_impl, builder.create_dot = cast, dot
    for name in (
        "binary_op",
        "unary_op",
        "create_fma",
        "create_fabs",
        "create_clampf",
        "create_rsqrt",
        "create_erf",
    ):
        setattr(builder, name, _refusing(name, getattr(builder, name)))
    for operations in (interpreter.ReduceOps, interpreter.ScanOps):
        operations.apply_impl = _refusing(operations.__name__, operations.apply_impl)
