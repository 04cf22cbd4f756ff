"""A machine with several accelerators, pretended on one that has none: placements are written down."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Pretended:
    """torch.cuda of a machine with several accelerators, which writes down what is asked of it."""

    NAMES = (
        "is_available", "current_device", "Stream", "current_stream", "device", "stream", "empty_cache",
        "set_device",
    )  # fmt: skip

    def __init__(self) -> None:
        self.said: list[str] = []
        self.device_now, self.stream_now = 0, "default"

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return self.device_now

    def set_device(self, index: int) -> None:
        self.device_now = index

    def empty_cache(self) -> None:
        pass

    def Stream(self, device: torch.device) -> Any:
        return PretendedStream(self, f"own of {device.index}")

    def current_stream(self) -> Any:
        return PretendedStream(self, f"{self.stream_now} of {self.device_now}")

    @contextmanager
    def device(self, device: torch.device) -> Any:
        before, self.device_now = self.device_now, device.index
        yield
        self.device_now = before

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.stream_now = self.stream_now, stream.name
        yield
        self.stream_now = before


class PretendedStream:
    def __init__(self, cuda: Pretended, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: PretendedStream) -> None:
        self.cuda.said.append(f"{self.name} waits for {other.name}")


class Placements(TorchFunctionMode):
    """Has tensors that are meant for an accelerator on the CPU instead, and writes down which one was meant:
    its index, or None where that was left to the calling thread, whose device is 0 unless it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[int | None] = []
        self.waited: list[str] = []
        """Copies from the host that were not asked to go on at once."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function is torch.device:
            return function(*args, **kwargs)
        if name == "pin_memory":
            return args[0]
        found = [self._index(a) for a in (*args, *kwargs.values()) if self._is_cuda(a)]
        self.indices += found
        if found and name == "to" and not kwargs.get("non_blocking"):
            self.waited.append(name)
        args = tuple(torch.device("cpu") if self._is_cuda(a) else a for a in args)
        kwargs = {k: torch.device("cpu") if self._is_cuda(v) else v for k, v in kwargs.items()}
        if name == "cuda":
            self.indices.append(None)
            return args[0]
        return function(*args, **kwargs)

    @staticmethod
    def _is_cuda(value: Any) -> bool:
        return (isinstance(value, torch.device) and value.type == "cuda") or (
            isinstance(value, str) and value.partition(":")[0] == "cuda"
        )

    @staticmethod
    def _index(value: Any) -> int | None:
        return torch.device(value).index
