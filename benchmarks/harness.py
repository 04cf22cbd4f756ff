"""Ratios that survive a noisy machine: everything compared is run turn by turn in one process.

Absolute times on a shared machine drift by half; the ratio of two things measured alternately does not.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table: ``ratios`` maps a rival to how many times longer it takes."""

    name: str
    size: str
    mode: str
    milliseconds: float
    ratios: dict[str, float]
    gigabytes_per_second: float
    copy_share: float


ROWS: list[Row] = []


def interleaved_medians(runs: dict[str, Run], seconds: float = 2.0) -> dict[str, float]:
    """Median seconds of each run, taken in turns for about ``seconds`` altogether (at least 7 turns)."""
    for run in runs.values():
        run()
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 7:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


@functools.cache
def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 64 MiB: the roof of anything bound by memory."""
    source = torch.randn(16 << 20)
    target = torch.empty_like(source)
    seconds = interleaved_medians({"copy": lambda: target.copy_(source)}, seconds=1.0)["copy"]
    return 2 * source.nbytes / seconds


def measure(
    benchmark: BenchmarkFixture,
    name: str,
    operator: Callable[..., Any],
    tensors: Sequence[Tensor],
    *,
    backward: bool,
    size: str,
    useful_bytes: int,
) -> Row:
    """Time the default backend of ``operator(*tensors, backend=...)`` against torch eager and torch.compile.

    Args:
        benchmark: pytest-benchmark's fixture; it records the default backend's own times.
        name: the operator's.
        operator: takes the tensors and ``backend=None | "reference"``.
        tensors: fp32 inputs, all differentiated when ``backward``.
        backward: time forward and backward together instead of forward under no_grad.
        size: for the table.
        useful_bytes: bytes that have to cross memory at least once.
    """
    leaves = [t.detach().requires_grad_(backward) for t in tensors]
    reference = functools.partial(operator, backend="reference")
    compiled = torch.compile(reference, dynamic=False)
    example = reference(*leaves)
    outputs = example if isinstance(example, tuple) else (example,)
    grads = [torch.randn_like(t) for t in outputs]

    def run(function: Callable[..., Any]) -> Run:
        def forward() -> object:
            with torch.no_grad():
                return function(*leaves)

        def both() -> object:
            return torch.autograd.grad(function(*leaves), leaves, grads)

        return both if backward else forward

    ours = run(operator)
    medians = interleaved_medians({"ours": ours, "eager": run(reference), "compile": run(compiled)})
    bandwidth = useful_bytes / medians["ours"]
    row = Row(
        name=name,
        size=size,
        mode="fwd+bwd" if backward else "fwd",
        milliseconds=medians["ours"] * 1e3,
        ratios={rival: medians[rival] / medians["ours"] for rival in ("eager", "compile")},
        gigabytes_per_second=bandwidth / 1e9,
        copy_share=bandwidth / copy_bandwidth(),
    )
    ROWS.append(row)
    benchmark.extra_info.update(row.ratios, copy_share=row.copy_share)
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    return row


def table() -> str:
    """The rows measured so far, as text."""
    head = (
        f"{'operator':22} {'size':16} {'mode':8} {'ms':>9} {'vs eager':>9} {'vs compile':>11} {'GB/s':>6} "
        f"{'of copy':>8}"
    )
    lines = [f"copy bandwidth {copy_bandwidth() / 1e9:.1f} GB/s, {torch.get_num_threads()} threads", head]
    for r in ROWS:
        lines.append(
            f"{r.name:22} {r.size:16} {r.mode:8} {r.milliseconds:9.3f} {r.ratios['eager']:9.2f} "
            f"{r.ratios['compile']:11.2f} {r.gigabytes_per_second:6.1f} {r.copy_share:8.0%}"
        )
    return "\n".join(lines)
