"""Types of the compiled module (csrc/bindings.cpp).

It has the functions that are linked into it, each of which says at the end of its file in csrc/ what Python
calls it (csrc/common/operator.h). They take the arguments of that signature, structs member by member,
tensors as addresses; of a template, the first argument numbers the element (ops/elements.py). Those for CUDA
devices are in ``cuda``, there only when built with CUDA; their ``stream`` is a cudaStream_t."""

from typing import Any

interface: int

def has_avx512_bf16() -> bool: ...
def __getattr__(name: str) -> Any: ...
