"""What is known of the GPU kernels without a GPU: every configuration compiled for A100, H100 and B200, what
it takes of each, and the rooflines of the operators.

Printed after the other tables and written to results/gpu.md and results/gpu.json. Fails where a kernel does
not compile or exceeds what it may take (see gpu/gates.py). Without nvcc there are no CUDA kernels in them,
and they say so. Nothing here is timed.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.gpu import cuda_kernels, cuda_traffic, emulated, traffic
from benchmarks.gpu.cuda_launches import launches
from benchmarks.gpu.devices import DEVICES, H100
from benchmarks.gpu.nvcc import compiler
from benchmarks.gpu.report import NOT_TIMED, Report
from benchmarks.gpu.resources import Resources
from benchmarks.gpu.traffic import Traffic
from benchmarks.gpu.triton_aot import Failure, available, compile_kernels
from benchmarks.gpu.work import SHAPES, Shape, Work, works

RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).parents[1] / "build"


class Printer:
    """Prints the table at the end of the run."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section(f"GPU kernels: {NOT_TIMED}")
        terminalreporter.write_line(self.report.as_text())


def gather() -> Report:
    """Compile everything and put it beside the rooflines."""
    functions = emulated.module()
    found = compile_kernels(whole=DEVICES)
    if compiler() is not None:
        found += cuda_kernels.compile_kernels(launches(functions))
    return Report(
        compilers={"Triton": version("triton"), **_nvcc()},
        kernels=[one for one in found if isinstance(one, Resources)],
        failures=[one for one in found if isinstance(one, Failure)],
        work=[pair for shape in SHAPES for pair in moved(shape, functions)],
        not_compiled=[] if compiler() else ["CUDA kernels: not compiled, no nvcc"],
    )


def moved(shape: Shape, functions: ModuleType) -> list[tuple[Work, dict[str, Traffic]]]:
    """Every operator's work, and what each backend moves for it.

    Args:
        functions: the emulated operators (benchmarks/gpu/emulated.py).
    """
    with emulated.installed(functions):
        found = {
            "CUDA": cuda_traffic.traffics(shape, functions),
            "Triton": traffic.traffics(shape, H100.arch),
        }
    return [
        (one, {backend: of[key] for backend, of in found.items() if (key := (one.operator, one.mode)) in of})
        for one in works(shape)
    ]


def _nvcc() -> dict[str, str]:
    tool = compiler()
    if tool is None:
        return {}
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return {"nvcc": found[1] if found else said.strip()}


@pytest.mark.skipif(not available(), reason="triton is not installed")
def bench_gpu_static(pytestconfig: pytest.Config) -> None:
    report = gather()
    report.write(RESULTS, BUILD)
    pytestconfig.pluginmanager.register(Printer(report))
    if report.complaints():
        pytest.fail("\n".join(report.complaints()), pytrace=False)
