"""Builds csrc/*.cu with a C++ compiler: kernels then run on the CPU, in the emulator of csrc/emulator."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
OPERATORS = sorted(CSRC.glob("*.cu"))
CACHE = ROOT / "build" / "emulated"
# The kernels look at the same bytes as several types, which CUDA allows and C++ does not.
FLAGS = ("-std=c++17", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror")
MODULE = "emulated_operators"


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler: the CUDA operators cannot be built for the emulator")
    return found


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def build(name: str, sources: list[Path], compile_with: list[str], link_with: list[str]) -> Path:
    """The linked result, of an earlier call where nothing it is made of has changed since."""
    headers = list(CSRC.rglob("*.h"))
    seen = hashlib.sha256(repr((compiler(), FLAGS, compile_with, link_with)).encode())
    for path in sorted([*headers, *sources, CSRC / "bindings_cuda.cpp"]):
        seen.update(path.read_bytes())
    folder = CACHE / f"{name}-{seen.hexdigest()[:16]}"
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> str:
        result = folder / f"{source.name}.{os.getpid()}.o"
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        run([compiler(), *FLAGS, *compile_with, f"-I{CSRC}", *language, "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    unfinished = folder / f"{name}.{os.getpid()}"
    run([compiler(), *objects, *link_with, "-pthread", "-o", str(unfinished)])
    unfinished.rename(target)  # at once, so that another process never sees half of it
    for one in objects:
        Path(one).unlink()
    return target


def module() -> ModuleType:
    """The bindings of csrc/bindings_cuda.cpp over emulated operators."""
    pybind11 = pytest.importorskip("pybind11")
    source = Path(__file__).with_name("module.cpp")
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    path = build(
        f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}",
        [*OPERATORS, source],
        ["-O1", "-fvisibility=hidden", *includes],
        ["-shared"],
    )
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    functions: ModuleType = loaded.cuda
    return functions
