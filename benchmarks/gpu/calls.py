"""Every operator in both directions at one shape, as a backend's module of kernels is called.

The modules ops/*/triton.py and ops/*/cuda.py offer the same functions; what they take follows from the
operators' declarations (ops/declaration.py). Each tensor is one of its own, of bf16 activations and fp32
modulation, weights and latents like those of :mod:`benchmarks.gpu.work`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.work import Shape, measured, sizes, tensor_axes


@dataclass(frozen=True)
class Call:
    """One function of a backend's module, and what it is given."""

    folder: str
    """Of ops/."""
    function: str
    arguments: tuple[Any, ...]

    def module(self, backend: str) -> ModuleType | None:
        """ops/FOLDER/BACKEND.py; None where there is none."""
        name = f"cosmos_distill.ops.{self.folder}.{backend}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            return None


def calls(
    shape: Shape, device: str = "meta", dtype: torch.dtype | None = None
) -> dict[tuple[str, str], Call]:
    """(operator, "fwd" or "bwd") -> its call, on tensors that hold nothing in particular.

    Args:
        shape: what the operators see.
        device: of the tensors.
        dtype: of activations and latents; None is the usual one of each.
    """
    from cosmos_distill.ops import registry

    there = sizes(shape)
    found: dict[tuple[str, str], Call] = {}
    for declared, measure in measured():
        given: list[Any] = []
        for one in declared.arguments:
            if one.kind is None:
                number = measure.numbers[one.name]
                given.append(number(there) if callable(number) else number)
            elif one.optional and one.name not in measure.given.split():
                given.append(None)
            else:
                of = one.kind.fixed or dtype or declared.kinds.usual
                axes = tensor_axes(one.kind, there)
                given.append(torch.empty(axes, dtype=of, device=device))
        folder = registry.OPERATORS[measure.operator][0]
        found[measure.operator, measure.mode] = Call(folder, declared.name, tuple(given))
    return found


class Addresses(TorchFunctionMode):
    """Within, a tensor without storage has an address; ``tensors`` holds all that were asked for theirs."""

    def __init__(self, offset: int = 0) -> None:
        """``offset``: of every made-up address from a multiple of 2^40."""
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.offset = offset

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function != Tensor.data_ptr:
            return function(*args, **(kwargs or {}))
        (x,) = args
        for address, known in self.tensors.items():
            if known is x:
                return address
        # So far up that no small number that is an argument too looks like one.
        address = ((len(self.tensors) + 1) << 40) + self.offset if x.is_meta else x.data_ptr()
        self.tensors[address] = x
        return address
