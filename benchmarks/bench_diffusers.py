"""One block of a Cosmos network of diffusers with the fused operators in it, against the same one without.

GEMMs and attention are most of a block and the same in both, so the table says what they take: the ratio can
be no better than the rest leaves room for. Written to results/diffusers.md.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.harness import NOT_SLOWER, Run, held_megabytes, peak_megabytes
from benchmarks.report import machine

pytest.importorskip("diffusers.models.transformers.transformer_cosmos")

from diffusers import CosmosTransformer3DModel

from cosmos_distill.ops.integrations.diffusers import fuse

TURNS = {"fwd": 15, "fwd+bwd": 7}
FRAMES, HEIGHT, WIDTH, HEADS = 2, 32, 32, 16  # 512 tokens of 2048 channels
HEAD = ["network", "pass", "stock ms", "fused ms", "ratio", "held MB", "peak MB", "GEMM", "attention", "rest"]
ROWS: list[Row] = []
MATRIX = {"aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"}


@dataclass(frozen=True)
class Row:
    """Of pairs, the first is of the stock network, the second of the fused one; milliseconds."""

    network: str
    mode: str
    total: tuple[float, float]
    held: tuple[float, float] | None
    peak: tuple[float, float]
    gemm: tuple[float, float]
    attention: tuple[float, float]

    def cells(self) -> list[str]:
        rest = [t - g - a for t, g, a in zip(self.total, self.gemm, self.attention, strict=True)]
        pairs = [self.held or (0.0, 0.0), self.peak, self.gemm, self.attention, rest]
        texts = ["" if p[1] == 0 else f"{p[0]:.0f} -> {p[1]:.0f}" for p in pairs]
        ratio = self.total[0] / self.total[1]
        return [self.network, self.mode, *(f"{t:.0f}" for t in self.total), f"{ratio:.2f}", *texts]


def write() -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in ROWS)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = (
        "# One block of a Cosmos network of diffusers, stock and fused\n\n"
        f"{machine()}, fp32, {FRAMES * HEIGHT * WIDTH // 4} tokens of {HEADS * 128} channels. Written by "
        "`make bench`.\n\nMedians of interleaved runs. Pairs are stock -> fused: memory kept for "
        "the backward pass, the most allocated at a time, and the milliseconds of matrix products, of "
        "attention, and of all the rest, which is what fusing can save.\n\n" + table + "\n"
    )
    (Path(__file__).parent / "results" / "diffusers.md").write_text(text, encoding="utf-8")
    return table


def network(per_frame: bool) -> nn.Module:
    """Cosmos-Predict1 or Transfer1 (learned positions, one noise level) or Predict2.5 (one a frame)."""
    return CosmosTransformer3DModel(
        in_channels=17,
        out_channels=16,
        num_attention_heads=HEADS,
        attention_head_dim=128,
        num_layers=1,
        text_embed_dim=1024,
        concat_padding_mask=False,
        extra_pos_embed_type=None if per_frame else "learnable",
    )


def profiled(run: Run) -> tuple[float, float, float]:
    """Milliseconds of a run, of its matrix products and of its attention."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        result = run()
        total = (time.perf_counter() - start) * 1e3
    del result
    events = profile.key_averages()
    gemm = sum(e.self_cpu_time_total for e in events if e.key in MATRIX)
    attention = sum(e.self_cpu_time_total for e in events if "attention" in e.key)
    return total, gemm / 1e3, attention / 1e3


def medians(runs: tuple[Run, Run], count: int) -> list[tuple[float, float]]:
    """Of total, matrix products and attention, each of both runs, taken in turns."""
    turns = [[profiled(run) for run in runs] for _ in range(count + 1)][1:]
    return [
        (statistics.median(t[0][part] for t in turns), statistics.median(t[1][part] for t in turns))
        for part in range(3)
    ]


@pytest.mark.parametrize("backward", [False, True], ids=["fwd", "fwd+bwd"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["Transfer1", "Predict2.5"])
def bench_diffusers(benchmark: BenchmarkFixture, per_frame: bool, backward: bool) -> None:
    stock = network(per_frame)
    fused = fuse(copy.deepcopy(stock))
    x, text = torch.randn(1, 17, FRAMES, HEIGHT, WIDTH), torch.randn(1, 512, 1024)
    level = torch.rand(1, 1, FRAMES, 1, 1) if per_frame else torch.rand(1)
    x.requires_grad_(backward)

    def forward(model: nn.Module) -> Tensor:
        return model(x, level, text, fps=24, return_dict=False)[0]

    def run(model: nn.Module) -> Any:
        if not backward:
            with torch.no_grad():
                return forward(model)
        return torch.autograd.grad(forward(model).sum(), [x, *model.parameters()])

    mode = "fwd+bwd" if backward else "fwd"
    runs = (lambda: run(stock), lambda: run(fused))
    total, gemm, attention = medians(runs, TURNS[mode])

    def held(model: nn.Module) -> float:
        return held_megabytes(lambda: forward(model), [x, text, *model.parameters()])

    ROWS.append(
        Row(
            network="Predict2.5, per frame" if per_frame else "Transfer1",
            mode=mode,
            total=total,
            held=(held(stock), held(fused)) if backward else None,
            peak=(peak_megabytes(runs[0]), peak_megabytes(runs[1])),
            gemm=gemm,
            attention=attention,
        )
    )
    print("\n" + write())
    ratio = total[0] / total[1]
    benchmark.extra_info.update(ratio=ratio)
    benchmark.pedantic(runs[1], rounds=1)
    assert ratio >= NOT_SLOWER, f"slower than stock: {ROWS[-1]}"
