"""The Triton kernels compiled for GPUs that are not there, and what the compiler made of them.

Kernels that have been imported under ``TRITON_INTERPRET=1`` cannot be compiled in the same process, so
compiling is done by processes of their own: :func:`compile_kernels` starts them and
``python -m benchmarks.gpu.triton_aot`` is what they run. No driver is needed: the triton package carries the
assembler and the disassembler.

Reports are kept in ``$XDG_CACHE_HOME/cosmos-distill/aot`` (``~/.cache`` by default) under a hash of the
machine code, and Triton keeps the machine code itself: only what has changed is compiled again.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.resources import CubinReport, Resources, read_cubin

ROOT = Path(__file__).resolve().parents[2]
MODULES = tuple(
    f"cosmos_distill.ops.{path.parent.name}.triton"
    for path in sorted((ROOT / "python/cosmos_distill/ops").glob("*/triton.py"))
)
"""Every module with Triton kernels; each has ``aot_cases()``."""


@dataclass(frozen=True)
class Failure:
    """A kernel that does not compile."""

    label: str
    error: str


def available() -> bool:
    """Whether the triton package is here, with its assembler."""
    return importlib.util.find_spec("triton") is not None


def compile_kernels(
    modules: Sequence[str] = MODULES,
    *,
    whole: Collection[int],
    alike: Collection[int] | None = None,
    workers: int | None = None,
) -> list[Resources | Failure]:
    """Compile the cases of ``modules`` for every architecture they are launched on.

    Args:
        modules: dotted names; each has ``aot_cases() -> list[AotCase]``.
        whole: architectures for which all are compiled; for others those with instructions of their own
            (:attr:`AotCase.must_contain`), and the first case of each operator's kernels.
        alike: of these, those for which cases that are :attr:`AotCase.alike` are, too; None is all of them.
        workers: processes; None is one per core, two at most (importing triton costs each of them seconds).

    Raises:
        RuntimeError: a process failed as a whole; the message holds what it said.
    """
    if workers is None:
        workers = min(2, len(os.sched_getaffinity(0)))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    folders = (str(ROOT / "python"), str(ROOT), environment.get("PYTHONPATH", ""))
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}

    def work(part: int) -> list[Resources | Failure]:
        request = json.dumps(
            [list(modules), list(whole), list(whole if alike is None else alike), part, workers]
        )
        command = [sys.executable, "-m", "benchmarks.gpu.triton_aot", request]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling kernels ahead of time failed:\n{done.stderr[-4000:]}")
        return [_from_json(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(work, range(workers)))
    # Back into the order of the cases, which were dealt out in turn.
    return [parts[i % workers][i // workers] for i in range(sum(map(len, parts)))]


def _from_json(one: dict[str, Any]) -> Resources | Failure:
    if "error" in one:
        return Failure(**one)
    return Resources(**{**one, "missing": tuple(one["missing"])})


def to_compile(
    modules: Sequence[str], whole: Collection[int], alike: Collection[int]
) -> Iterator[tuple[Any, int]]:
    """The cases to compile and for which architecture; those with the same machine code once."""
    seen: set[tuple[Any, ...]] = set()
    for module in modules:
        for case in importlib.import_module(module).aot_cases():
            for arch in case.archs:
                if case.alike and arch not in alike:
                    continue
                name = case.kernel.__name__
                key: tuple[Any, ...] = (case.operator, name, arch)
                # Matrix instructions are an architecture's own, and with them registers and shared memory.
                if arch in whole or case.must_contain.get(arch):
                    key = (name, arch, case.source().hash(), case.num_warps, case.num_stages)
                if key not in seen:
                    seen.add(key)
                    yield case, arch


def _report(cubin: bytes) -> CubinReport:
    """What the tools say about some machine code, from the cache where they have been asked before."""
    import triton

    asked = hashlib.sha256(cubin + Path(read_cubin.__code__.co_filename).read_bytes()).hexdigest()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cosmos-distill/aot"
    file = kept / f"{asked}.json"
    try:
        registers, stack, shared, opcodes = json.loads(file.read_text())
        return CubinReport(registers, stack, shared, Counter(opcodes))
    except (OSError, ValueError):
        pass
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        report = read_cubin(path, tools)
    kept.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps([report.registers, report.stack, report.shared, report.opcodes]))
    fresh.replace(file)
    return report


def _configuration(case: Any) -> str:
    constants = " ".join(f"{k}={v}" for k, v in case.constexprs.items() if k.isupper())
    return f"{case.label}, {constants} warps={case.num_warps} stages={case.num_stages}"


def _compile(case: Any, arch: int) -> Resources:
    compiled = case.compile(arch)
    report = _report(compiled.asm["cubin"])
    threads = re.search(r"\.reqntid\s+(\d+)", compiled.asm["ptx"])
    if threads is None:
        raise ValueError("the PTX does not say how many threads a block has")
    release = ".".join(compiled.metadata.triton_version.split(".")[:2])
    required = case.must_contain.get(arch, ())
    return Resources(
        operator=case.operator,
        kernel=case.kernel.__name__,
        config=_configuration(case),
        arch=arch,
        threads=int(threads[1]),
        registers=report.registers,
        stack=report.stack,
        shared=compiled.metadata.shared,  # Triton's is all dynamic: the file knows the system's share only
        tensor_columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
        spill_loads=report.count("LDL"),
        spill_stores=report.count("STL"),
        matrix=report.matrix,
        fp64=report.fp64,
        access_bits=report.access_bits,
        compiler=f"Triton {release}",
        missing=tuple(want for want in required if not any(o.startswith(want) for o in report.opcodes)),
    )


def main(request: str) -> None:
    """Compile a part of the cases and print one JSON object for each."""
    modules, whole, alike, part, workers = json.loads(request)
    for i, (case, arch) in enumerate(to_compile(modules, whole, alike)):
        if i % workers != part:
            continue
        try:
            found: Resources | Failure = _compile(case, arch)
        except Exception as error:  # whatever the compiler throws is the answer for this kernel
            label = f"{case.kernel.__name__} [{_configuration(case)}] sm_{arch}"
            found = Failure(label, f"{type(error).__name__}: {error}"[:2000])
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
