"""Backend ``cuda`` on the CPU: the operators' Python side and kernel text as they are, threads emulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest

from benchmarks.gpu import emulated
from cosmos_distill.ops import registry
from cosmos_distill.ops.library import import_every_operator
from tests import lanes


@pytest.fixture(scope="session", autouse=True)
def emulator() -> None:
    """What all tests here are built with."""
    lanes.require("emulator")


@pytest.fixture(scope="module")
def emulated_cuda() -> Iterator[ModuleType]:
    """The compiled functions; meanwhile the operators run them on CPU tensors for ``backend="cuda"``."""
    import_every_operator()  # which of them are known yet depends on what ran before
    functions = emulated.module()
    with emulated.installed(functions) as monkeypatch:
        monkeypatch.setattr(registry, "_picked", {})
        for operator, (folder, backends) in registry.OPERATORS.items():
            served = tuple(replace(b, devices=("cpu",)) if b.name == "cuda" else b for b in backends)
            monkeypatch.setitem(registry.OPERATORS, operator, (folder, served))
        yield functions
