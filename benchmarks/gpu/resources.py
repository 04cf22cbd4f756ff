"""What a compiled kernel takes of a GPU, read off its machine code."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

FP64_ARITHMETIC = frozenset({"DADD", "DMUL", "DFMA", "DMMA", "DSETP", "DMNMX"})
MATRIX = frozenset({"HMMA", "HGMMA", "UTCHMMA", "QGMMA", "IGMMA", "UTCQMMA"})

# "/*0a10*/   @!P0 MUFU.RCP64H R5, R7 ;", with a scheduling word on some architectures.
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9]*(?:\.[A-Z0-9_]+)*)", re.M
)
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """One kernel in one configuration, compiled for one architecture."""

    operator: str
    kernel: str
    config: str
    arch: int
    threads: int
    """Per block."""
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread: registers spilled to memory, and arrays indexed at run time."""
    shared: int
    """Bytes per block, static and dynamic."""
    tensor_columns: int = 0
    """Of tensor memory, per block."""
    spill_loads: int = 0
    spill_stores: int = 0
    """Instructions that read or write the stack."""
    matrix: dict[str, int] = field(default_factory=dict)
    """Matrix instructions by mnemonic: HMMA (mma.sync), HGMMA (wgmma), UTCHMMA (tcgen05)."""
    fp64: int = 0
    """Instructions on 64-bit floating-point numbers."""
    access_bits: int = 0
    """The widest access of one thread to global memory; 0 when all of it goes through bulk copies."""
    compiler: str = ""
    """With its release, "Triton 3.7": they differ in what they spill."""
    missing: tuple[str, ...] = ()
    """Opcodes that its author says it must have and that are not there."""

    @property
    def label(self) -> str:
        return f"{self.kernel} [{self.config}] sm_{self.arch}"


@dataclass(frozen=True)
class CubinReport:
    """What two tools of the CUDA toolkit say about a file with one kernel."""

    registers: int
    stack: int
    shared: int
    opcodes: Counter[str]
    """Instructions by mnemonic with its modifiers."""

    def count(self, *mnemonics: str) -> int:
        return sum(n for opcode, n in self.opcodes.items() if opcode.partition(".")[0] in mnemonics)

    @property
    def fp64(self) -> int:
        return sum(n for opcode, n in self.opcodes.items() if is_fp64(opcode))

    @property
    def access_bits(self) -> int:
        """Of the widest load, store or asynchronous copy between a thread and global memory."""
        found = 0
        for opcode in self.opcodes:
            name, *modifiers = opcode.split(".")
            if name in ("LDG", "STG", "LDGSTS"):
                found = max(found, next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 32))
        return found

    @property
    def matrix(self) -> dict[str, int]:
        return {name: n for name in sorted(MATRIX) if (n := self.count(name))}


def is_fp64(opcode: str) -> bool:
    """Whether an instruction of the machine code computes on, or converts, 64-bit floats."""
    name, *modifiers = opcode.split(".")
    return name in FP64_ARITHMETIC or any(m in ("F64", "RCP64H", "RSQ64H") for m in modifiers)


def instructions(listing: str) -> Counter[str]:
    """What the output of ``nvdisasm -c``, or a part of it, consists of, by mnemonic with its modifiers."""
    return Counter(_INSTRUCTION.findall(listing))


def parse(usage: str, listing: str) -> CubinReport:
    """Read the output of ``cuobjdump --dump-resource-usage`` and of ``nvdisasm -c``.

    Raises:
        ValueError: the text is not what these tools print for one kernel.
    """
    figures = _USAGE.findall(usage)
    if len(figures) != 1:
        raise ValueError(f"expected the resources of one kernel, found {len(figures)} in: {usage[:500]!r}")
    registers, stack, shared, _ = map(int, figures[0])
    opcodes = instructions(listing)
    if not opcodes["EXIT"]:
        raise ValueError(f"no instruction recognised in the disassembly: {listing[:500]!r}")
    return CubinReport(registers, stack, shared, opcodes)


def read_cubin(path: Path, tools: Path) -> CubinReport:
    """The report on a file of machine code holding one kernel.

    Args:
        path: a cubin.
        tools: the folder of ``cuobjdump`` and ``nvdisasm``.
    """

    def run(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = run(tools / "cuobjdump", "--dump-resource-usage", path)
    return parse(usage, run(tools / "nvdisasm", "-c", path))
