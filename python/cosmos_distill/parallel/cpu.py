"""Megatron-core without CUDA: its pipeline schedules and gradient buffers ask for devices by name.

Only the modules of Megatron that are used here are adapted, and only their own name ``torch``: everybody else
sees the real one. Where CUDA exists nothing is done, except within :func:`in_place_of_cuda`.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch

_MODULES = (
    "megatron.core.distributed.distributed_data_parallel",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.mappings",
)
_device = torch.device("cpu")


def adapt() -> None:
    """Let Megatron's schedules, messages and buffers allocate on the CPU if there is no CUDA. Idempotent."""
    if not torch.cuda.is_available():
        _give(_torch_without_cuda())


@contextmanager
def in_place_of_cuda(device: torch.device) -> Iterator[None]:
    """Inside the block Megatron's schedules, messages and buffers allocate on ``device``, also where CUDA
    exists: on the meta device, where nothing is computed, to count what they take."""
    global _device
    before, _device = _device, device
    _give(_torch_without_cuda())
    try:
        yield
    finally:
        _device = before
        if torch.cuda.is_available():
            _give(torch)


def _give(seen_as_torch: types.ModuleType) -> None:
    for name in _MODULES:
        module: Any = importlib.import_module(name)
        module.torch = seen_as_torch


def _torch_without_cuda() -> types.ModuleType:
    """``torch`` with a ``cuda`` whose current device is another one and whose streams wait for nothing."""
    cuda = _Fallback("torch.cuda", torch.cuda)
    cuda.__dict__.update(
        current_device=lambda: _device,
        synchronize=lambda *_: None,
        current_stream=lambda *_: None,  # 0.19 asks for it in case there is something to wait for
        empty_cache=lambda: None,
        stream=nullcontext,
    )
    stand_in = _Fallback("torch", torch)
    stand_in.__dict__.update(cuda=cuda, zeros=_elsewhere(torch.zeros), empty=_elsewhere(torch.empty))
    return stand_in


class _Fallback(types.ModuleType):
    """A module that takes what it does not define from another one."""

    def __init__(self, name: str, real: Any) -> None:
        super().__init__(name)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _elsewhere(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The factory, with "cuda" read as the device in its place."""

    @wraps(factory)
    def create(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("device") == "cuda":
            options["device"] = _device
        return factory(*args, **options)

    return create
