"""Versions, devices and compilers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

import torch

from .clock import Clock

_QUERY = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"


def device() -> torch.device:
    """What the findings are about: the first GPU, if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def first_line(*command: str) -> str | None:
    """Of what a program says, None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[0].strip() if done.returncode == 0 and lines else None


def condition() -> str | None:
    """Clocks, temperature and power of the first GPU, as they are now."""
    return first_line("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _built() -> str:
    try:
        from .. import compiled
    except ImportError as error:
        return f"missing ({error}): pip install -e . with a C++ compiler"
    build = compiled.kernels.__name__.rpartition(".")[2]
    return f"{build}, CUDA kernels {'built in' if hasattr(compiled.kernels, 'cuda') else 'not built'}"


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def described(section: dict[str, Any], clock: Clock) -> None:
    """One row for each thing."""

    def row(what: str, found: object) -> None:
        section["rows"].append({"what": what, "found": str(found)})

    row("Python", f"{platform.python_version()} ({sys.executable})")
    for package in ("torch", "triton", "numpy", "cosmos-distill", "diffusers", "megatron-core"):
        row(package, torch.__version__ if package == "torch" else _version(package))
    row("system", platform.platform())
    capability = torch.backends.cpu.get_cpu_capability()
    row("CPU", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {capability}")
    row("threads of torch", torch.get_num_threads())
    row("memory", _memory())
    row("compiled CPU kernels", _built())
    for name, command in (("C++ compiler", "g++"), ("CUDA compiler", "nvcc")):
        row(name, first_line(command, "--version") or f"no {command} on PATH")
    if not torch.cuda.is_available():
        row("GPU", "none that torch sees" + ("" if torch.version.cuda else ": this torch is built for CPUs"))
        return
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    row("NCCL", "missing" if nccl is None else ".".join(map(str, nccl)))
    row("CUDA of torch", torch.version.cuda)
    driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    row("driver", driver or "unknown")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        described_gpu = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        row(f"GPU {i}", f"{described_gpu}, {gpu.multi_processor_count} multiprocessors")
    row("clocks, temperature, power, throttling", condition() or "no nvidia-smi")
