"""How the CUDA operators launch their kernels at the published networks' sizes: told by csrc/ itself.

The operators of ops/*/cuda.py run over the emulator's build, which writes launches down instead of making
them. Tensors have no storage and addresses are made up: nothing looks behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu import emulated
from benchmarks.gpu.calls import Addresses, calls
from benchmarks.gpu.work import SHAPES, TRANSFER1_7B, Shape
from cosmos_distill.ops import registry

NARROW_HEADS = replace(TRANSFER1_7B, name="heads of 64", heads=64, head_dim=64)
ALIGNED, ODD = 0, 4
HALVES = (torch.bfloat16, torch.float16)
MIXES = (
    *((one, one, one) for one in registry.NARROW),
    *((torch.float32, half, half) for half in HALVES),
    *((torch.float32, half, torch.float32) for half in HALVES),
)
"""Elements of the residual, of the branch and of the output that adaLN's kernels have a build for."""


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
    with emulated.installed(functions):
        for shape in (*SHAPES, NARROW_HEADS):
            for dtype in registry.NARROW:
                for offset in (ALIGNED, ODD):
                    _note(found, functions.record(partial(_run, shape, dtype, offset)), shape.name)
            for mix in MIXES:
                for offset in (ALIGNED, ODD):
                    _note(found, functions.record(partial(_run_adaln, shape, *mix, offset)), shape.name)
    return found


def _note(found: dict[str, dict[Launch, list[str]]], made: Iterable[Any], shape: str) -> None:
    for launch in made:
        ways = found.setdefault(plain_name(launch.kernel), {})
        names = ways.setdefault(Launch(launch.threads, launch.shared), [])
        if shape not in names:
            names.append(shape)


def plain_name(kernel: str) -> str:
    """As :func:`benchmarks.gpu.nvcc.demangle` writes it."""
    name = kernel.partition("kKernel = ")[2].partition(";")[0].removesuffix("]")
    return re.sub(r"cd::(?:cuda::)?|\{anonymous\}::", "", name).lstrip("& ")


def _run(shape: Shape, dtype: torch.dtype, offset: int) -> None:
    """Every operator in both directions, with everything that far from an aligned address."""
    for (operator, _), call in calls(shape, dtype=dtype).items():
        served = {one.name: one.dtypes or () for one in registry.OPERATORS[operator][1]}
        module = call.module("cuda")
        if module is not None and dtype in served["cuda"]:
            for switch in (False, True):  # whatever is one
                given = [switch if isinstance(one, bool) else one for one in call.arguments]
                with Addresses(offset):
                    getattr(module, call.function)(*given)


def _run_adaln(shape: Shape, x: torch.dtype, y: torch.dtype, out: torch.dtype, offset: int) -> None:
    """adaLN's operators with a residual of ``x``, a branch of ``y`` and an output of ``out``."""
    made = calls(shape, dtype=x)
    cuda = made["gated_residual_adaln", "fwd"].module("cuda")
    assert cuda is not None
    residual, branch, gate, shift, scale, eps, rms, _ = made["gated_residual_adaln", "fwd"].arguments
    grad_x_new, grad, x_new, _, stats, *_, wanted = made["gated_residual_adaln", "bwd"].arguments
    branch, grad = branch.to(y), grad.to(out)
    with Addresses(offset):
        cuda.gated_residual_adaln(residual, branch, gate, shift, scale, eps, rms, out)
        cuda.gated_residual_adaln_backward(
            grad_x_new, grad, x_new, branch, stats, gate, scale, rms, y, wanted
        )
        if y == out:
            cuda.adaln_modulate(residual, shift, scale, eps, rms, out)
            cuda.adaln_modulate_backward(grad, residual, stats, scale, rms, 0b111)
            cuda.gated_residual(residual, branch, gate)
            cuda.gated_residual_backward(grad_x_new, branch, gate, y, 0b11)
