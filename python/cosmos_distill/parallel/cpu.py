"""Megatron-core without CUDA: its pipeline schedules and gradient buffers ask for devices by name.

Only the modules of Megatron that are used here are adapted, and only their own name ``torch``: everybody else
sees the real one. Where CUDA exists nothing is done.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from contextlib import nullcontext
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
_CPU = torch.device("cpu")


def adapt() -> None:
    """Let Megatron's schedules, messages and buffers allocate on the CPU if there is no CUDA. Idempotent."""
    if torch.cuda.is_available():
        return
    stand_in = _torch_without_cuda()
    for name in _MODULES:
        module: Any = importlib.import_module(name)
        module.torch = stand_in


def _torch_without_cuda() -> types.ModuleType:
    """``torch`` with a ``cuda`` whose current device is the CPU and whose streams wait for nothing."""
    cuda = _Fallback("torch.cuda", torch.cuda)
    cuda.__dict__.update(
        current_device=lambda: _CPU,
        synchronize=lambda *_: None,
        current_stream=lambda *_: None,  # 0.19 asks for it in case there is something to wait for
        empty_cache=lambda: None,
        stream=nullcontext,
    )
    stand_in = _Fallback("torch", torch)
    stand_in.__dict__.update(cuda=cuda, zeros=_on_cpu(torch.zeros), empty=_on_cpu(torch.empty))
    return stand_in


class _Fallback(types.ModuleType):
    """A module that takes what it does not define from another one."""

    def __init__(self, name: str, real: Any) -> None:
        super().__init__(name)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The factory, with "cuda" read as the CPU."""

    @wraps(factory)
    def create(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("device") == "cuda":
            options["device"] = _CPU
        return factory(*args, **options)

    return create
