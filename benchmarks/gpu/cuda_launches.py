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

from benchmarks.gpu import adaln_mixes, emulated
from benchmarks.gpu.calls import Addresses, calls
from benchmarks.gpu.work import SHAPES, TRANSFER1_7B, Shape
from cosmos_distill.ops import registry

NARROW_HEADS = replace(TRANSFER1_7B, name="heads of 64", heads=64, head_dim=64)
ALIGNED, ODD = 0, 4


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
            for mix in adaln_mixes.MIXES:
                for offset in (ALIGNED, ODD):
                    _note(found, functions.record(partial(adaln_mixes.run, shape, *mix, offset)), shape.name)
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
