"""The CUDA C++ kernels in the terms of the static table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.gpu.cuda_launches import Launch
from benchmarks.gpu.nvcc import SOURCES, CompileError, CudaKernel, compile_cuda
from benchmarks.gpu.resources import Resources
from benchmarks.gpu.triton_aot import Failure
from benchmarks.gpu.work import FP32


def resources(kernel: CudaKernel, launches: Mapping[Launch, list[str]]) -> list[Resources]:
    """A line of the table for each way in which the kernel is launched; for one that never is, a line without
    dynamic shared memory."""
    name, _, arguments = kernel.kernel.rstrip(">").partition("<")
    return [
        Resources(
            operator=f"CUDA {kernel.source}",
            kernel=name,
            config=(arguments or "-") + (f": {', '.join(shapes)}" if len(launches) > 1 else ""),
            arch=kernel.arch,
            threads=launch.threads,
            registers=kernel.registers,
            stack=kernel.stack,
            shared=kernel.shared + launch.shared,
            spill_loads=kernel.spill_loads // FP32,
            spill_stores=kernel.spill_stores // FP32,
            matrix={"HMMA": kernel.matrix} if kernel.matrix else {},
            fp64=kernel.fp64,
        )
        for launch, shapes in (launches or {Launch(kernel.threads, 0): []}).items()
    ]


def compile_kernels(
    launches: Mapping[str, Mapping[Launch, list[str]]], sources: Iterable[Path] = SOURCES
) -> list[Resources | Failure]:
    """Every CUDA kernel of ``sources`` on every architecture, vectorised bf16 first.

    Args:
        launches: what :func:`benchmarks.gpu.cuda_launches.launches` says of them.
        sources: files of CUDA C++.

    Raises:
        FileNotFoundError: there is no nvcc.
    """
    try:
        kernels = compile_cuda(sources)
    except CompileError as error:
        return [Failure("CUDA", str(error)[:2000])]
    found = [row for one in kernels for row in resources(one, launches.get(one.kernel, {}))]
    return sorted(found, key=lambda one: (one.operator, not one.config.startswith("bf16, 8")))
