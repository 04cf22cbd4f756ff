"""CUDA kernels in the emulator under the address and the thread sanitizer: nothing to report, and a planted
bug of either kind is reported."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from benchmarks.gpu import emulated
from tests import lanes

DRIVER = Path(__file__).with_name("sanitized.cpp")
SOURCES = [*["adaln.cu"] * 7, *["qk_norm_rope.cu"] * 5, *["dm_loss.cu"] * 5, *["attention.cu"] * 2]
"""Of the kernels that each of the driver's cases runs."""


@cache
def program(sanitizer: str, *defines: str) -> Path:
    flag = f"-fsanitize={sanitizer}"
    probe = subprocess.run(
        [str(emulated.compiler()), flag, "-x", "c++", "-", "-o", os.devnull],
        input="int main() {}",
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        lanes.missing(f"the C++ compiler lacks {flag}: install gcc's, or a full one")
    name = "-".join(["sanitized", sanitizer, *(d.removeprefix("-D").lower() for d in defines)])
    return emulated.build(name, [*emulated.OPERATORS, DRIVER], ["-O1", "-g", flag, *defines], [flag])


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_to_report(sanitizer: str):
    done = run(program(sanitizer))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"finite in {len(SOURCES)} cases\n", "")


@pytest.mark.parametrize("case", range(len(SOURCES)))
def test_a_result_that_is_too_short_is_reported(case: int):
    """Of every case, which is watched, then."""
    done = run(program("address"), "short", str(case))
    assert done.returncode and "heap-buffer-overflow" in done.stderr
    assert SOURCES[case] in done.stderr and "finite" not in done.stdout, done.stderr


def test_a_missing_barrier_is_reported():
    planted = [str(SOURCES.index(source)) for source in ("adaln.cu", "attention.cu")]
    done = run(program("thread", "-DCD_PLANT_RACE"), *planted)
    assert "data race" in done.stderr
    assert "reduce.h" in done.stderr and "attention.cu" in done.stderr
