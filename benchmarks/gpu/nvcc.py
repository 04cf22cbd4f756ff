"""The CUDA operators (csrc/*.cu) compiled for GPUs that are not there, and what each kernel takes of them.

No driver and no GPU is needed. Results are kept in build/nvcc under a hash of the sources and the compiler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import resources

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SOURCES = tuple(sorted(CSRC.glob("*.cu")))
ARCHS = (80, 90, 100)
CACHE = ROOT / "build" / "nvcc"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_FUNCTION = re.compile(r"^\.text\.(\w+):", re.M)
_PTX_ENTRY = re.compile(r"\.entry (\w+)\(")
_THREADS = re.compile(r"\.maxntid (\d+)")
PACKAGES = tuple(
    f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-runtime", "cuda-cccl", "cuda-crt", "nvvm")
)
"""On PyPI, nvcc and its parts. Unpinned, the last two come in a release whose PTX this ptxas cannot read."""
MISSING = f"no nvcc: put it on PATH, set CUDACXX or pip install {' '.join(PACKAGES)}"


class CompileError(RuntimeError):
    """nvcc refused a source; the message is its own."""


@dataclass(frozen=True)
class CudaKernel:
    """One kernel of one source, compiled for one architecture."""

    source: str
    """Stem of the file: adaln, attention, ..."""
    kernel: str
    """With its template arguments."""
    arch: int
    """80, 90 or 100."""
    threads: int
    """Per block, at most (its launch bounds)."""
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread."""
    spill_stores: int
    """Bytes per thread."""
    spill_loads: int
    """Bytes per thread."""
    shared: int
    """Bytes per block, static; what a launch adds depends on the shape."""
    matrix: int = 0
    """Matrix instructions (HMMA in machine code, mma.sync in PTX)."""
    fp64: int = 0
    """Instructions on 64-bit floats."""

    @property
    def label(self) -> str:
        return f"{self.source}: {self.kernel} sm_{self.arch}"


class Instructions(NamedTuple):
    """How many there are of what matters."""

    matrix: int
    fp64: int


def compiler() -> str | None:
    """nvcc, from CUDACXX, PATH or the packages of PyPI beside this Python's others."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or _packaged()


def _packaged() -> str | None:
    nvidia = importlib.util.find_spec("nvidia")
    folders = (nvidia.submodule_search_locations or []) if nvidia else []
    return next((str(found) for folder in folders for found in Path(folder).glob("cu*/bin/nvcc")), None)


def disassembler() -> str | None:
    """nvdisasm, from the CUDA toolkit or the triton package; without it instructions are counted in PTX."""
    if found := shutil.which("nvdisasm"):
        return found
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        path = Path(folder) / "backends/nvidia/bin/nvdisasm"
        if path.exists():
            return str(path)
    return None


def compile_cuda(
    sources: Iterable[Path] = SOURCES, archs: Sequence[int] = ARCHS, workers: int | None = None
) -> list[CudaKernel]:
    """Every kernel of ``sources`` on every architecture.

    Raises:
        CompileError: a source does not compile.
        FileNotFoundError: there is no nvcc.
    """
    nvcc = compiler()
    if nvcc is None:
        raise FileNotFoundError(MISSING)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    tool = disassembler()

    def one(source: Path) -> list[CudaKernel]:
        kept = CACHE / f"{source.stem}-{_fingerprint(source, archs, version, tool)}.json"
        if kept.exists():
            return [CudaKernel(**kernel) for kernel in json.loads(kept.read_text(encoding="utf-8"))]
        kernels = _compile(nvcc, tool, source, archs)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(kernel) for kernel in kernels]), encoding="utf-8")
        return kernels

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return [kernel for kernels in pool.map(one, sources) for kernel in kernels]


def _fingerprint(source: Path, archs: Sequence[int], *more: str | None) -> str:
    seen = hashlib.sha256(repr((tuple(archs), more)).encode())
    for path in sorted([Path(__file__), Path(resources.__file__), source, *CSRC.rglob("*.h")]):
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def _compile(nvcc: str, tool: str | None, source: Path, archs: Sequence[int]) -> list[CudaKernel]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", "-fatbin", "--resource-usage"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        command += ["--keep", "--keep-dir", name, str(source), "-o", str(folder / "all.fatbin")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"{source.name}: {done.stderr or done.stdout}")
        kernels = parse_usage(source.stem, done.stdout + done.stderr)
        counted = []
        for arch in archs:
            ptx = _kept(folder, arch, "ptx").read_text(encoding="utf-8")
            if tool is None:
                counts = count_ptx(ptx)
            else:
                text = [tool, "-c", str(_kept(folder, arch, "cubin"))]
                counts = count_sass(subprocess.run(text, capture_output=True, text=True, check=True).stdout)
            threads = dict(_per_entry(ptx))
            for kernel in kernels:
                if kernel.arch == arch:
                    bounds = _THREADS.search(threads[kernel.kernel])
                    counted.append(
                        replace(
                            kernel,
                            threads=int(bounds[1]) if bounds else 1024,
                            matrix=counts[kernel.kernel].matrix,
                            fp64=counts[kernel.kernel].fp64,
                        )
                    )
    names = demangle([kernel.kernel for kernel in counted])
    return [replace(kernel, kernel=name) for kernel, name in zip(counted, names, strict=True)]


def _kept(folder: Path, arch: int, suffix: str) -> Path:
    found = [path for path in folder.glob(f"*.{suffix}") if re.search(rf"(sm|compute)_{arch}\.", path.name)]
    # With one architecture alone its name is left out.
    (path,) = found or folder.glob(f"*.{suffix}")
    return path


def parse_usage(source: str, text: str) -> list[CudaKernel]:
    """Read what ``nvcc --resource-usage`` prints; names are as the linker has them.

    Raises:
        ValueError: it says nothing of any kernel, or not all of one.
    """
    parts = _ENTRY.split(text)
    kernels = []
    for name, arch, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        stack, used = _STACK.search(rest), _USED.search(rest)
        if stack is None or used is None:
            raise ValueError(f"nothing said of the registers or the stack of {name}: {rest[:300]!r}")
        frame, stores, loads = map(int, stack.groups())
        kernels.append(
            CudaKernel(source, name, int(arch), 0, int(used[1]), frame, stores, loads, int(used[2] or 0))
        )
    if not kernels:
        raise ValueError(f"no kernel in what nvcc says of {source}: {text[:300]!r}")
    return kernels


def count_sass(listing: str) -> dict[str, Instructions]:
    """Instructions of every function in the output of ``nvdisasm -c``."""
    parts = _FUNCTION.split(listing)
    found = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        opcodes = resources.instructions(body)
        found[name] = Instructions(
            matrix=sum(n for opcode, n in opcodes.items() if opcode.startswith("HMMA")),
            fp64=sum(n for opcode, n in opcodes.items() if resources.is_fp64(opcode)),
        )
    return found


def count_ptx(text: str) -> dict[str, Instructions]:
    """Instructions of every kernel of a PTX file."""
    return {
        name: Instructions(body.count("mma.sync"), len(re.findall(r"\.f64\b", body)))
        for name, body in _per_entry(text)
    }


def _per_entry(ptx: str) -> list[tuple[str, str]]:
    parts = _PTX_ENTRY.split(ptx)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def demangle(names: Sequence[str]) -> list[str]:
    """C++ names without namespaces and parameters, by c++filt where there is one."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    scopes = r"\(anonymous namespace\)::|cd::(?:cuda::)?"
    plain = [re.sub(scopes, "", line) for line in done.stdout.splitlines()]
    return [re.sub(r"^void |\(.*\)$", "", re.sub(r"\((?:int|bool)\)", "", line)) for line in plain]
