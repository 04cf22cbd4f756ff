"""What every benchmark needs before torch is imported: an allocator that keeps its pages.

Without it, glibc hands every large output back to the kernel and the page faults of the next one are
most of what is measured (five times the operator itself). The variables are read when the process starts,
so the run is replaced by itself with them set.
"""

from __future__ import annotations

import os
import sys

import pytest

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def pytest_configure(config: pytest.Config) -> None:
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in MALLOC.items()):
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()  # give the new process the real standard output
        os.execve(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]], {**os.environ, **MALLOC})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from benchmarks.harness import ROWS

    if ROWS:
        from benchmarks.report import write

        terminalreporter.section("ratios (median of interleaved runs; above 1 is faster than torch)")
        terminalreporter.write_line(write(ROWS))
