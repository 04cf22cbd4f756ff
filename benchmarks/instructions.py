"""Instruction counts of the CPU kernels: the same in every run, so a regression shows without a stopwatch.

    python -m benchmarks.instructions            compare with what is recorded
    python -m benchmarks.instructions --record   record anew, after a change that is meant

The kernels are built without Python for one instruction set (every x86-64 machine of the last ten years has
it, and valgrind emulates nothing wider) and run under valgrind's callgrind. Counts belong to a compiler: with
another version than the recorded one there is nothing to compare.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import native

HERE = Path(__file__).parent
RECORD = HERE / "instructions.json"
LEVEL = "x86-64-v3"
FLAGS = ["-fopenmp-simd", f"-march={LEVEL}"]
SLACK = 1.02


class Unavailable(RuntimeError):
    """Nothing can be counted or compared here; the message says why."""


class Incomparable(Unavailable):
    """What is recorded is another compiler's."""


def compiler() -> str:
    """Name and version of g++, without which (and valgrind) nothing is counted."""
    for tool in ("g++", "valgrind"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed: apt install g++ valgrind, or the like")
    if platform.machine() != "x86_64":
        raise Unavailable(f"counts are recorded for x86-64, this is {platform.machine()}")
    return "g++ " + subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


def counts() -> dict[str, int]:
    """Kernel and element type -> instructions."""
    compiler()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            program = native.build(HERE / "instructions.cpp", FLAGS, folder)
        except native.BuildFailed as failure:
            if "valgrind/callgrind.h" in str(failure):
                raise Unavailable(
                    "valgrind's headers are not installed: apt install valgrind, or the like"
                ) from failure
            raise
        run = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", program]
        subprocess.run(run, check=True, capture_output=True)
        found = {}
        for out in folder.glob("out.*"):
            text = out.read_text(encoding="utf-8")
            trigger = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
            total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
            if trigger and total:
                found[trigger[1]] = int(total[1])
        return dict(sorted(found.items()))


def regressions() -> list[str]:
    """What takes over 2 % more instructions than recorded, or is not recorded; better is fine.

    Raises:
        Unavailable: a tool is missing.
        Incomparable: the compiler is not the recorded one.
    """
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    if compiler() != recorded["compiler"]:
        raise Incomparable(
            f"recorded with {recorded['compiler']}, this is {compiler()}: install the former as g++"
        )
    old, new = recorded["instructions"], counts()
    if set(old) != set(new):
        return [f"kernels recorded and counted differ by {sorted(set(old) ^ set(new))}"]
    return [
        f"{kernel}: {new[kernel]} instructions, recorded {old[kernel]} ({new[kernel] / old[kernel] - 1:+.1%})"
        for kernel in old
        if new[kernel] > SLACK * old[kernel]
    ]


def main() -> int:
    if "--record" in sys.argv[1:]:
        record = {"compiler": compiler(), "instruction_set": LEVEL, "instructions": counts()}
        RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return 0
    worse = regressions()
    print("\n".join(worse) or "no kernel takes more instructions than recorded")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
