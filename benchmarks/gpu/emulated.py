"""Builds csrc/*.cu with a C++ compiler: kernels then run on the CPU, in the emulator of csrc/emulator."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch  # noqa: F401  # compiled modules are always loaded after torch

import cosmos_distill
from cosmos_distill.ops import library

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
OPERATORS = sorted(CSRC.glob("*.cu"))
CACHE = ROOT / "build" / "emulated"
# The kernels look at the same bytes as several types, which CUDA allows and C++ does not.
FLAGS = ("-std=c++17", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror")
MODULE = "emulated_operators"
MISSING = "no C++ compiler to build the emulator with: put g++ on PATH or set CXX"


def compiler() -> str | None:
    """From CXX or PATH."""
    return os.environ.get("CXX") or shutil.which("g++")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(name: str, sources: list[Path], compile_with: list[str], link_with: list[str]) -> Path:
    """The linked result, of an earlier call where nothing it is made of has changed since.

    Raises:
        FileNotFoundError: there is no C++ compiler.
        RuntimeError: it refused; the message is its own.
    """
    tool = compiler()
    if tool is None:
        raise FileNotFoundError(MISSING)
    headers = list(CSRC.rglob("*.h"))
    seen = hashlib.sha256(repr((tool, FLAGS, compile_with, link_with)).encode())
    for path in sorted([*headers, *sources]):
        seen.update(path.read_bytes())
    folder = CACHE / f"{name}-{seen.hexdigest()[:16]}"
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> str:
        result = folder / f"{source.name}.{os.getpid()}.o"
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        _run([tool, *FLAGS, *compile_with, f"-I{CSRC}", *language, "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    unfinished = folder / f"{name}.{os.getpid()}"
    _run([tool, *objects, *link_with, "-pthread", "-o", str(unfinished)])
    unfinished.rename(target)  # at once, so that another process never sees half of it
    for one in objects:
        Path(one).unlink()
    return target


def loaded(package: str, sources: list[Path], compile_with: list[str]) -> tuple[ModuleType, Path]:
    """The bindings of csrc/bindings.h over emulated operators, and where they are.

    Args:
        package: part of the module's name, for pybind11 initialises no second module of the same name.
        sources: further ones.
        compile_with: further options.
    """
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    path = build(
        f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}",
        [*OPERATORS, HERE / "emulated.cpp", *sources],
        ["-O1", "-fvisibility=hidden", *compile_with, *includes],
        ["-shared"],
    )
    spec = importlib.util.spec_from_file_location(f"{package}.{MODULE}", path)
    assert spec is not None and spec.loader is not None
    bindings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bindings)
    functions: ModuleType = bindings.cuda
    return functions, path


def module() -> ModuleType:
    """The bindings over emulated operators."""
    return loaded("plain", [], [])[0]


def _forget_kernels() -> None:
    """Modules that were, or could not be, imported with another function table."""
    library.kernels.cache_clear()
    ours = [name for name in sys.modules if name.startswith("cosmos_distill.ops.")]
    for name in ours:
        parent, _, child = name.rpartition(".")
        if child in ("cuda", "cuda_launch"):
            del sys.modules[name]
            vars(sys.modules[parent]).pop(child, None)


@contextmanager
def installed(functions: ModuleType) -> Iterator[pytest.MonkeyPatch]:
    """Within, ops/*/cuda.py call these functions; what else is patched ends with it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        compiled = sys.modules.get("cosmos_distill._C")
        if compiled is None:
            try:
                from cosmos_distill import _C as compiled
            except ImportError:  # the package need not be built for this
                compiled = ModuleType("cosmos_distill._C")
                monkeypatch.setitem(sys.modules, "cosmos_distill._C", compiled)
                monkeypatch.setattr(cosmos_distill, "_C", compiled, raising=False)
        monkeypatch.setattr(compiled, "cuda", functions, raising=False)
        _forget_kernels()
        try:
            yield monkeypatch
        finally:
            _forget_kernels()
