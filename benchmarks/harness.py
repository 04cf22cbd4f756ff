"""Ratios that survive a noisy machine: everything compared is run turn by turn in one process.

Absolute times on a shared machine drift by half; the ratio of two things measured alternately does not.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

Run = Callable[[], object]

# The default must not lose to plain torch; the slack is what the measurement itself wavers by.
NOT_SLOWER = 0.9
# Below this many useful bytes an operator lives in the caches, and its share of the bandwidth says nothing.
BEYOND_CACHE = 24 << 20
# The pages that tensors happen to lie in move an operator by a quarter, and its rivals as well: every row is
# measured with tensors in several places.
PLACES = 3


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``ratios`` maps a rival to how many times longer it takes: ``eager``, torch calls as model code has them;
    ``reference``, the operator's own reference backend; ``compile``, torch.compile of that. ``copy_share`` is
    of the bandwidth of a copy timed in the same turns; it and the bandwidth itself are None where arithmetic
    is the bound. ``held`` and ``peak`` are megabytes that the operator and the reference keep for the
    backward pass beside their inputs, and allocate at most on top of inputs.
    """

    name: str
    size: str
    dtype: str
    mode: str
    milliseconds: float
    ratios: dict[str, float]
    gigabytes_per_second: float | None
    copy_share: float | None
    held: tuple[float, float] | None
    peak: tuple[float, float]

    @property
    def key(self) -> str:
        return f"{self.name} {self.size} {self.dtype} {self.mode}"


ROWS: list[Row] = []


def interleaved_medians(runs: dict[str, Run], seconds: float = 1.5) -> dict[str, float]:
    """Median seconds of each run, taken in turns for about ``seconds`` altogether (at least 7 turns)."""
    return _medians(interleaved(runs, seconds, turns=7))


def interleaved(runs: dict[str, Run], seconds: float, turns: int) -> dict[str, list[float]]:
    """Seconds of each run, in turns.

    A turn runs twice and times the second: a result that is still dirty in the caches is written to memory at
    the cost of whoever runs next, and that shall be who made it. The order changes from turn to turn all the
    same.
    """
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < turns:
        shuffle(order)
        for name in order:
            runs[name]()
            start = time.perf_counter()
            result = runs[name]()
            samples[name].append(time.perf_counter() - start)
            del result  # not during the next measurement
    return samples


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in samples.items()}


@functools.cache
def _copied() -> tuple[Tensor, Tensor]:
    return torch.randn(16 << 20), torch.empty(16 << 20)


def copy() -> None:
    """A copy of 64 MiB: the roof of anything bound by memory."""
    source, target = _copied()
    target.copy_(source)


COPY_BYTES = 2 * (64 << 20)


def held_megabytes(function: Callable[[], Any], inputs: Sequence[Tensor]) -> float:
    """What the results of ``function`` keep alive for the backward pass, beside the inputs."""
    known = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values()) / 1e6


def peak_megabytes(run: Run) -> float:
    """The most that ``run`` has allocated at a time, results included."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as record:
        result = run()
    del result
    allocated = peak = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak / 1e6


def measure(
    benchmark: BenchmarkFixture,
    name: str,
    operator: Callable[..., Any],
    tensors: Sequence[Tensor],
    *,
    eager: Callable[..., Any],
    backward: bool,
    size: str,
    passes: int | None,
    hold: bool = True,
) -> Row:
    """Time the default backend of ``operator(*tensors, backend=...)`` against plain torch.

    Args:
        benchmark: pytest-benchmark's fixture; it records the default backend's own times.
        name: the operator's.
        operator: takes the tensors and ``backend=None | "reference"``.
        tensors: inputs, all differentiated when ``backward``; the first sets the dtype of the row.
        eager: the same as a chain of torch calls, takes the tensors.
        backward: time forward and backward together instead of forward under no_grad.
        size: for the table.
        passes: tensors of the first one's size that have to cross memory at least once; None where that says
            nothing about the time.
        hold: fail where the default is slower than eager or the reference.
    """
    reference = functools.partial(operator, backend="reference")
    torch._dynamo.reset()
    compiled = torch.compile(reference, dynamic=False)
    example = reference(*tensors)
    outputs = example if isinstance(example, tuple) else (example,)

    def run(function: Callable[..., Any], leaves: list[Tensor], grads: list[Tensor]) -> Run:
        def forward() -> object:
            with torch.no_grad():
                return function(*leaves)

        def both() -> object:
            return torch.autograd.grad(function(*leaves), leaves, grads)

        return both if backward else forward

    def held(function: Callable[..., Any]) -> float:
        return held_megabytes(lambda: function(*leaves), leaves)

    useful_bytes = (passes or 0) * tensors[0].nbytes
    samples: dict[str, list[float]] = {}
    taken = []  # what has been measured stays where it is, so that the next tensors lie elsewhere
    for place in range(PLACES):
        leaves = [t.detach().clone().requires_grad_(backward) for t in tensors]
        grads = [torch.randn_like(t) for t in outputs]
        taken.append((leaves, grads, torch.empty(tensors[0].numel() * place // 2)))
        ours = run(operator, leaves, grads)
        runs = {"ours": ours}
        for rival, function in {"eager": eager, "reference": reference, "compile": compiled}.items():
            runs[rival] = run(function, leaves, grads)
        if useful_bytes >= BEYOND_CACHE:
            runs["copy"] = copy
        for contender, times in interleaved(runs, 1.5 / PLACES, turns=5).items():
            samples.setdefault(contender, []).extend(times)
    del example, outputs
    medians = _medians(samples)
    bandwidth = useful_bytes / medians["ours"]
    row = Row(
        name=name,
        size=size,
        dtype=str(tensors[0].dtype).removeprefix("torch."),
        mode="fwd+bwd" if backward else "fwd",
        milliseconds=medians["ours"] * 1e3,
        ratios={rival: medians[rival] / medians["ours"] for rival in ("eager", "reference", "compile")},
        gigabytes_per_second=bandwidth / 1e9 if passes else None,
        copy_share=bandwidth * medians["copy"] / COPY_BYTES if "copy" in medians else None,
        held=(held(operator), held(reference)) if backward else None,
        peak=(peak_megabytes(ours), peak_megabytes(runs["reference"])),
    )
    ROWS.append(row)
    benchmark.extra_info.update(row.ratios, copy_share=row.copy_share)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    slowest = min(row.ratios["eager"], row.ratios["reference"])
    assert not hold or slowest >= NOT_SLOWER, f"slower than plain torch: {row}"
    return row
