"""How far the CPU kernels are from their roof: a loop that reads and writes as much, and computes nothing.

    python -m benchmarks.roof                       writes results/roof.md; `make bench` does that, too
    python -m benchmarks.roof --march x86-64-v3     shows what another instruction set takes; v2 is SSE

A copy is no roof for operators that read more than they write: a streamed line costs less than one that is
read. Each kernel is therefore timed in turns with a loop of its own traffic, at 2048 x 4096 elements a
tensor, and once more on one thread with 24 rows in cache, where nothing but its arithmetic is left.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import native, report
from benchmarks.tables import markdown, percent

RESULT = report.RESULTS / "roof.md"


class Kernel(NamedTuple):
    """Milliseconds of one call and of the loop with its traffic; nanoseconds per element in cache."""

    name: str
    dtype: str
    reads: int
    writes: int
    milliseconds: float
    traffic: float
    cached: float


def kernels(march: str = "native") -> list[Kernel]:
    """All of them, built for ``march`` and measured now."""
    with tempfile.TemporaryDirectory() as folder:
        main = Path(__file__).with_suffix(".cpp")
        program = native.build(main, ["-fopenmp", f"-march={march}"], Path(folder))
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    found = []
    for line in lines:
        name, dtype, *numbers = line.rsplit(",", maxsplit=6)
        found.append(Kernel(name, dtype, int(numbers[0]), int(numbers[1]), *map(float, numbers[2:])))
    return found


def table(found: list[Kernel]) -> str:
    head = ["kernel", "dtype", "tensors in / out", "ms", "ms of its traffic", "share", "ns in cache"]
    lines = []
    for one in found:
        times = f"{one.milliseconds:.2f}", f"{one.traffic:.2f}", percent(one.traffic / one.milliseconds)
        lines.append([one.name, one.dtype, f"{one.reads} / {one.writes}", *times, f"{one.cached:.2f}"])
    return markdown(head, lines)


def write(found: list[Kernel]) -> str:
    """Put the table into results/roof.md and return it."""
    text = table(found)
    RESULT.write_text(
        "# CPU kernels and their roof\n\n"
        f"{report.machine()}. Written by `make bench`, or `python -m benchmarks.roof`.\n\n"
        "`share` is the time of a loop that reads and streams as many tensors and computes nothing over the "
        "kernel's, both with all threads and timed in turns, at 2048 x 4096 elements a tensor. The last "
        "column is arithmetic alone: one thread, 24 rows of 4096 in cache.\n\n"
        f"{text}\n",
        encoding="utf-8",
    )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roof")
    parser.add_argument("--march", help="an instruction set that g++ knows; nothing is written")
    march = parser.parse_args().march
    print(table(kernels(march)) if march else write(kernels()))
