"""Backend ``cuda`` on the CPU: the operators' Python side and kernel text as they are, threads emulated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch  # noqa: F401  # compiled modules are always loaded after torch

import cosmos_distill
from cosmos_distill.ops import library, registry
from tests.ops.cuda import emulated


def _forget_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that were, or could not be, imported with another function table."""
    library.kernels.cache_clear()
    ours = [name for name in sys.modules if name.startswith("cosmos_distill.ops.")]
    for name in ours:
        if name.rpartition(".")[2] in ("cuda", "cuda_launch"):
            parent, _, child = name.rpartition(".")
            monkeypatch.delattr(sys.modules[parent], child, raising=False)
            monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def emulated_cuda() -> Iterator[ModuleType]:
    """The compiled functions; meanwhile the operators run them on CPU tensors for ``backend="cuda"``."""
    functions = emulated.module()
    with pytest.MonkeyPatch.context() as monkeypatch:
        compiled = sys.modules.get("cosmos_distill._C")
        if compiled is None:
            try:
                from cosmos_distill import _C as compiled
            except ImportError:  # the package need not be built for these tests
                compiled = ModuleType("cosmos_distill._C")
                monkeypatch.setitem(sys.modules, "cosmos_distill._C", compiled)
                monkeypatch.setattr(cosmos_distill, "_C", compiled, raising=False)
        monkeypatch.setattr(compiled, "cuda", functions, raising=False)
        _forget_kernels(monkeypatch)
        monkeypatch.setattr(registry, "_picked", {})
        for operator, (folder, backends) in registry.OPERATORS.items():
            served = tuple(replace(b, devices=("cpu",)) if b.name == "cuda" else b for b in backends)
            monkeypatch.setitem(registry.OPERATORS, operator, (folder, served))
        yield functions
        _forget_kernels(monkeypatch)
    library.kernels.cache_clear()
