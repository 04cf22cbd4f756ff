"""An optimiser's step with the average of the parameters; plain torch is fused AdamW and a foreach lerp."""

from __future__ import annotations

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness import COPY_BYTES, NOT_SLOWER, ROWS, Row, copy, interleaved_medians, peak_megabytes
from cosmos_distill import ops

ELEMENTS = 16 << 20
STEP = ops.AdamWStep(step=10, lr=1e-4, ema_rate=1e-3)


@pytest.mark.parametrize("copied", [False, True], ids=["fp32", "fp32-with-bf16-copy"])
def bench_adamw_ema(benchmark: BenchmarkFixture, copied: bool) -> None:
    params, grads, first, second, emas = (torch.rand(ELEMENTS) for _ in range(5))
    theirs = torch.nn.Parameter(params.clone())
    theirs.grad, average = grads, emas.clone()
    fused = torch.optim.AdamW([theirs], lr=1e-4, fused=True)
    copies = [torch.empty(ELEMENTS, dtype=torch.bfloat16)] if copied else None

    def operator(backend: str | None = None) -> None:
        ops.adamw_ema([params], [grads], [first], [second], [emas], STEP, copies=copies, backend=backend)

    def eager() -> None:
        fused.step()
        torch._foreach_lerp_([average], [theirs.detach()], STEP.ema_rate)
        if copies is not None:
            torch._foreach_copy_(copies, [theirs.detach()])

    reference = functools.partial(operator, backend="reference")
    compiled = torch.compile(reference)
    runs = {"ours": operator, "eager": eager, "reference": reference, "compile": compiled, "copy": copy}
    medians = interleaved_medians(runs, seconds=4.0)
    tensors = 9.5 if copied else 9  # five in, four out, and half of one
    bandwidth = tensors * params.nbytes / medians["ours"]
    row = Row(
        name="adamw_ema" + (", bf16 copy" if copied else ""),
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
