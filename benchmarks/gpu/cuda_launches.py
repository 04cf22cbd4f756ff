"""How the CUDA operators launch their kernels at the published networks' sizes: told by csrc/ itself.

The operators are built for the emulator, which writes launches down instead of making them. Addresses are
made up: nothing looks behind them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import ModuleType

from benchmarks.gpu.work import SHAPES, TRANSFER1_7B, Shape

NARROW_HEADS = replace(TRANSFER1_7B, name="heads of 64", heads=64, head_dim=64)
ALIGNED, ODD = 1 << 20, (1 << 20) + 4
FP32 = 0


@dataclass(frozen=True)
class Launch:
    """What a block of a kernel gets."""

    threads: int
    shared: int
    """Bytes of shared memory, beside what the kernel itself declares."""


def launches(functions: ModuleType) -> dict[str, dict[Launch, list[str]]]:
    """Kernel with its template arguments -> how it is launched -> names of shapes, for all dtypes and widths.

    Args:
        functions: the emulated operators (benchmarks/gpu/emulated.py).
    """
    found: dict[str, dict[Launch, list[str]]] = {}
    for shape in (*SHAPES, NARROW_HEADS):
        for dtype in (0, 1, 2):
            for address in (ALIGNED, ODD):
                for launch in functions.record(
                    lambda shape=shape, dtype=dtype, address=address: _call(functions, shape, dtype, address)
                ):
                    ways = found.setdefault(plain_name(launch.kernel), {})
                    names = ways.setdefault(Launch(launch.threads, launch.shared), [])
                    if shape.name not in names:
                        names.append(shape.name)
    return found


def plain_name(kernel: str) -> str:
    """As :func:`benchmarks.gpu.nvcc.demangle` writes it."""
    name = kernel.partition("kKernel = ")[2].partition(";")[0].removesuffix("]")
    return re.sub(r"cd::(?:cuda::)?|\{anonymous\}::", "", name).lstrip("& ")


def _call(functions: ModuleType, shape: Shape, dtype: int, a: int) -> None:
    """Every operator in both directions, with everything at address ``a``."""
    width, dim = shape.channels, shape.head_dim
    rows = (dtype, shape.groups, shape.tokens // shape.groups, width)
    for gate in (0, a):
        functions.adaln_forward(*rows, a, a, gate, width, a, width, a, width, 1e-6, a, a, a, 0)
        functions.adaln_backward(*rows, a, a, a, a, a, gate, width, a, width, a, a, a, a, a, a, 0)
    heads = (shape.tokens, shape.heads, width)
    tables = (dtype, shape.tokens, dim, a, a, False, [])
    functions.norm_rope_forward(*tables, 1e-6, *2 * [[*heads, a, a, a, a]], 0)
    functions.norm_rope_backward(*tables, *2 * [[*heads, a, a, a, a, a, a, a]], 0)
    _, channels, frames, height, breadth = shape.latent
    elements = channels * frames * height * breadth
    functions.renoise(dtype, 1, elements, a, a, a, a, a, 0)
    functions.vsd(dtype, 1, elements, a, a, a, a, 0, 5.0, 0, 0, 1, 1, a, a, a, 0)
    functions.vsd_gradient(dtype, 1, elements, a, a, a, 0)
    for grad in (0, a):
        functions.squared_error(dtype, 1, elements, a, a, 0, 0, 0, 1, 1, grad, a, a, a, 0)
    if dtype == FP32:  # not served
        return
    matrix = [a, 0, width, dim]
    sizes = [1, shape.heads, shape.tokens, shape.tokens, dim]
    functions.attention_forward(dtype, sizes, 1.0, *4 * [matrix], a, 0)
    functions.attention_backward(dtype, sizes, 1.0, matrix, 0, *4 * [matrix], a, *3 * [matrix], a, 0)
