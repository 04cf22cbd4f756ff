"""The CUDA C++ kernels in the terms of the static table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.nvcc import SOURCES, CompileError, CudaKernel, compile_cuda, compiler
from benchmarks.gpu.resources import Resources
from benchmarks.gpu.triton_aot import Failure
from benchmarks.gpu.work import FP32, TRANSFER1_7B

_BYTES = {"float": 4, "bf16": 2, "fp16": 2}
_WARPS = 8
"""Of a block of qk_norm_rope."""


def dynamic_shared(kernel: str) -> int | None:
    """Bytes of shared memory that the launch in csrc/ adds to a block for Transfer1-7B.

    Args:
        kernel: with its template arguments.

    Returns:
        None for a kernel whose launch is not known here.
    """
    name, _, arguments = kernel.rstrip(">").partition("<")
    types = arguments.split(", ")
    width, head = TRANSFER1_7B.channels, TRANSFER1_7B.head_dim
    if name == "adaln_forward_kernel":  # a row, between the passes over it
        return width * _BYTES[types[0]]
    if name == "adaln_backward_kernel":  # sums for shift, scale and, where there is one, gate
        return (3 if types[-1] == "true" else 2) * width * FP32
    if name == "norm_rope_forward_kernel":  # cosines and sines of a token
        return 2 * head * FP32
    if name == "norm_rope_backward_kernel":  # those, and a sum per warp
        return (2 + _WARPS) * head * FP32
    if name.startswith("attention"):  # 64 rows of one or two matrices, two tiles of each of the others
        tile = int(types[1]) * _BYTES[types[0]]
        if name == "attention_kernel":
            return tile * (64 + 4 * 64)
        others = int(types[2])
        stats = 2 * others * 2 * FP32 if name == "attention_dkv_kernel" else 0
        return tile * (2 * 64 + 4 * others) + stats
    if re.match(r"(renoise|vsd|vsd_gradient|squared_error|squared_error_gradient|sum_chunks)_kernel$", name):
        return 0
    return None


def resources(kernel: CudaKernel) -> Resources:
    """One line of the table; occupancy is that of Transfer1-7B's launch."""
    name, _, arguments = kernel.kernel.rstrip(">").partition("<")
    dynamic = dynamic_shared(kernel.kernel)
    return Resources(
        operator=f"CUDA {kernel.source}",
        kernel=name,
        config=(arguments or "-") + (" (static shared memory only)" if dynamic is None else ""),
        arch=kernel.arch,
        threads=kernel.threads,
        registers=kernel.registers,
        stack=kernel.stack,
        shared=kernel.shared + (dynamic or 0),
        spill_loads=kernel.spill_loads // FP32,
        spill_stores=kernel.spill_stores // FP32,
        matrix={"HMMA": kernel.matrix} if kernel.matrix else {},
        fp64=kernel.fp64,
    )


def compile_kernels(sources: Iterable[Path] = SOURCES) -> list[Resources | Failure]:
    """Every CUDA kernel of ``sources`` on every architecture, vectorised bf16 first; empty without nvcc."""
    if compiler() is None:
        return []
    try:
        kernels = compile_cuda(sources)
    except CompileError as error:
        return [Failure("CUDA", str(error)[:2000])]
    return sorted(
        map(resources, kernels), key=lambda one: (one.operator, not one.config.startswith("bf16, 8"))
    )
