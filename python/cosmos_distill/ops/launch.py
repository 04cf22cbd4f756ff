"""How Triton kernels are launched: on the device of their tensors, or written down instead.

Every launch goes through :func:`launch`, so that the ahead-of-time checks of :mod:`.aot` see exactly the
kernels, specialisations and configurations that a GPU would be given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what is run, how often, on what."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """All of the kernel's arguments by name; tensors stand for pointers."""
    num_warps: int
    num_stages: int


@dataclass
class _Recording:
    arch: int
    launches: list[Launch] = field(default_factory=list)


_recording: _Recording | None = None


@contextlib.contextmanager
def record(arch: int) -> Iterator[list[Launch]]:
    """Within, launches are appended to the list instead of made, as they would be on that architecture.

    Args:
        arch: compute capability times ten: 80, 90, 100.
    """
    global _recording
    _recording, before = _Recording(arch), _recording
    try:
        yield _recording.launches
    finally:
        _recording = before


def architecture(x: Tensor) -> int:
    """Compute capability times ten of the device x is on; 0 for Triton's interpreter."""
    if _recording is not None:
        return _recording.arch
    if x.device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, num_stages: int = 2, **constants: Any
) -> None:
    """Run ``kernel`` on a grid, which may be empty.

    Args:
        kernel: made by ``triton.jit``.
        grid: programs along up to three axes.
        arguments: in the kernel's order, at least one tensor among them.
        num_warps: of each program.
        num_stages: of its pipelined loops.
        constants: the kernel's remaining arguments, compiled in.
    """
    if _recording is not None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        _recording.launches.append(Launch(kernel, grid, named, num_warps, num_stages))
        return
    if math.prod(grid) == 0:
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:  # Triton launches on the current device, wherever the tensors are
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
