"""An optimiser's step with the average of the parameters; plain torch is fused AdamW and a foreach lerp."""

from __future__ import annotations

import functools

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness import COPY_BYTES, NOT_SLOWER, ROWS, Row, copy, interleaved_medians, peak_megabytes
from cosmos_distill import ops

ELEMENTS = 16 << 20
STEP = ops.AdamWStep(step=10, lr=1e-4, ema_rate=1e-3)


def bench_adamw_ema(benchmark: BenchmarkFixture) -> None:
    params, grads, first, second, emas = (torch.rand(ELEMENTS) for _ in range(5))
    theirs = torch.nn.Parameter(params.clone())
    theirs.grad, average = grads, emas.clone()
    fused = torch.optim.AdamW([theirs], lr=1e-4, fused=True)

    def operator(backend: str | None = None) -> None:
        ops.adamw_ema([params], [grads], [first], [second], [emas], STEP, backend=backend)

    def eager() -> None:
        fused.step()
        torch._foreach_lerp_([average], [theirs.detach()], STEP.ema_rate)

    reference = functools.partial(operator, backend="reference")
    compiled = torch.compile(reference)
    runs = {"ours": operator, "eager": eager, "reference": reference, "compile": compiled, "copy": copy}
    medians = interleaved_medians(runs, seconds=4.0)
    bandwidth = 9 * params.nbytes / medians["ours"]  # five tensors in, four out
    row = Row(
        name="adamw_ema",
        size=f"{ELEMENTS >> 20}M",
        dtype="float32",
        mode="step",
        milliseconds=medians["ours"] * 1e3,
        ratios={rival: medians[rival] / medians["ours"] for rival in ("eager", "reference", "compile")},
        gigabytes_per_second=bandwidth / 1e9,
        copy_share=bandwidth * medians["copy"] / COPY_BYTES,
        held=None,
        peak=(peak_megabytes(operator), peak_megabytes(reference)),
    )
    ROWS.append(row)
    benchmark.extra_info.update(row.ratios)
    benchmark.pedantic(operator, rounds=3, warmup_rounds=1)
    assert min(row.ratios["eager"], row.ratios["reference"]) >= NOT_SLOWER, f"slower than torch: {row}"
