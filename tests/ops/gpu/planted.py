"""Kernels that the ahead-of-time gates must refuse, each for one reason, and one they must let through.

Compiled by a process of its own, like the library's: nothing here is imported by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from cosmos_distill.ops.aot import AotCase

ALL = (80, 90, 100)


@triton.jit
def clean(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


@triton.jit
def double_constant(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    third = tl.full([BLOCK], 0.1, tl.float64)
    tl.store(out + at, (tl.load(x + at, mask=at < n) * third).to(tl.float32), mask=at < n)


@triton.jit
def spilling(x, out, n, BLOCK: tl.constexpr):
    """A row of 512 values per thread, needed again after it has been summed."""
    at = tl.arange(0, BLOCK)
    row = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, row - tl.sum(row, 0), mask=at < n)


@triton.jit
def product(x, out, n, BLOCK: tl.constexpr):
    """Matrix products in a loop whose loads are pipelined: every stage keeps two blocks in shared memory."""
    rows = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for step in range(0, n):
        a = tl.load(x + step * BLOCK * BLOCK + rows[:, None] * BLOCK + rows[None, :])
        b = tl.load(x + (n + step) * BLOCK * BLOCK + rows[:, None] * BLOCK + rows[None, :])
        total = tl.dot(a, b, total)
    tl.store(out + rows[:, None] * BLOCK + rows[None, :], total)


@triton.jit
def unknown_name(x, out, n, BLOCK: tl.constexpr):
    tl.store(out, tl.load(x) + nowhere)  # noqa: F821  # type: ignore[name-defined]


def case(
    operator: str,
    kernel: Any,
    block: int,
    *,
    dtype: str = "fp32",
    warps: int = 4,
    stages: int = 2,
    archs: tuple[int, ...] = (90,),
    must_contain: Mapping[int, tuple[str, ...]] | None = None,
) -> AotCase:
    return AotCase(
        operator,
        "planted",
        kernel,
        {"x": f"*{dtype}", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"},
        {"BLOCK": block},
        ("x", "out"),
        (1,),
        warps,
        stages,
        archs,
        must_contain or {},
    )


def aot_cases() -> list[AotCase]:
    return [
        case("clean", clean, 1024, archs=ALL),
        case("clean", clean, 2048),  # a second configuration, left out unless every one is asked for
        case("double_constant", double_constant, 256),
        case("spilling", spilling, 16384, warps=1),
        case("shared", product, 128, dtype="bf16", stages=8, archs=ALL),
        case("absent", clean, 512, must_contain={90: ("HGMMA",)}),
        # Two warps cannot issue wgmma, which takes four.
        case("attention_planted", product, 32, dtype="bf16", warps=2),
        case(
            "matrix", product, 64, dtype="bf16", archs=ALL, must_contain={90: ("HGMMA",), 100: ("UTCHMMA",)}
        ),
        case("unknown_name", unknown_name, 32),
    ]
