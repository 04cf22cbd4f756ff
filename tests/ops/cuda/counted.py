"""What emulated kernels ask of tensors, counted at every access (counted.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.gpu import emulated


class Accesses(NamedTuple):
    """Of one launch to one tensor."""

    asked: int
    """Bytes read and written by all threads together."""
    touched: int
    """Bytes of the tensor that any thread read or wrote."""


def counted_module() -> tuple[ModuleType, ctypes.CDLL]:
    """Bindings over emulated operators that count what they ask of memory, and functions of counted.cpp."""
    source = Path(__file__).with_name("counted.cpp")
    functions, path = emulated.loaded("counted", [source], ["-fsanitize=thread"])
    return functions, ctypes.CDLL(str(path))


def accesses(launch: Any, tensors: Sequence[Tensor], library: ctypes.CDLL) -> list[Accesses]:
    """Run a recorded launch and count.

    Args:
        launch: made by the module that ``library`` comes with (:func:`counted_module`).
        tensors: contiguous, with storage.
        library: functions of counted.cpp.
    """
    asked = [ctypes.c_uint64(0) for _ in tensors]
    touched = [(ctypes.c_ubyte * x.nbytes)() for x in tensors]
    library.watch.restype = ctypes.c_bool
    for x, sum_, marks in zip(tensors, asked, touched, strict=True):
        where = ctypes.c_void_p(x.data_ptr()), ctypes.c_size_t(x.nbytes)
        assert library.watch(*where, ctypes.byref(sum_), marks), "too many tensors"
    try:
        launch.run()
    finally:
        library.watch_nothing()
    return [Accesses(sum_.value, bytes(marks).count(1)) for sum_, marks in zip(asked, touched, strict=True)]
