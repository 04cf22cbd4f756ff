"""The CPU kernels against loops with their traffic and nothing else: results/roof.md."""

from __future__ import annotations

import shutil

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import roof


@pytest.mark.skipif(shutil.which("g++") is None, reason="built with g++: apt install g++, or the like")
def bench_roof(benchmark: BenchmarkFixture) -> None:
    found = benchmark.pedantic(roof.kernels, rounds=1)
    print(roof.write(found))
