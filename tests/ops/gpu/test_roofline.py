"""The arithmetic under the static table: least bytes against tensors that really exist, bytes moved against
launches, operations against published totals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_gpu_static
from benchmarks.gpu import traffic as traffic_module
from benchmarks.gpu.cuda_kernels import resources
from benchmarks.gpu.cuda_launches import Launch
from benchmarks.gpu.devices import B200, DEVICES, H100
from benchmarks.gpu.nvcc import CudaKernel
from benchmarks.gpu.report import Report
from benchmarks.gpu.resources import Resources
from benchmarks.gpu.traffic import Traffic, traffic, traffics
from benchmarks.gpu.triton_aot import Failure
from benchmarks.gpu.work import PREDICT25_2B, SHAPES, TRANSFER1_7B, Shape, Work, works
from cosmos_distill import ops
from cosmos_distill.ops.launch import launch

TINY = Shape("tiny", frames=2, height=3, width=4, heads=3, frame_modulation=True, head_dim=12)


def least_bytes(operator: str, inputs: list[torch.Tensor], **options: object) -> tuple[int, int]:
    """(forward, backward) bytes: inputs and outputs; gradients in, inputs again and gradients out.

    What backward reads but the operator does not need for it (shift) is left to the caller.
    """
    out = getattr(ops, operator)(*inputs, backend="reference", **options)
    outputs = list(out) if isinstance(out, tuple) else [out]
    given, made = (sum(t.nbytes for t in tensors) for tensors in (inputs, outputs))
    return given + made, made + 2 * given


def tokens(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(1, TINY.frames, TINY.height * TINY.width, TINY.channels).to(dtype)


@pytest.mark.parametrize(
    ("operator", "streams", "vectors"), [("adaln_modulate", 1, 2), ("gated_residual_adaln", 2, 3)]
)
def test_least_bytes_of_adaln_are_those_of_its_tensors(operator: str, streams: int, vectors: int) -> None:
    modulation = [torch.randn(1, TINY.frames, TINY.channels) for _ in range(vectors)]
    forward, backward = least_bytes(operator, [tokens() for _ in range(streams)] + modulation)
    # Backward has no use for shift; the gated one takes x_new, of x's size, in x's place.
    expected = [forward, backward - modulation[0].nbytes]
    assert [w.minimum for w in works(TINY) if w.operator == operator] == expected


def test_least_bytes_of_qk_norm_rope_are_those_of_its_tensors() -> None:
    q, k = (tokens().view(1, TINY.tokens, TINY.heads, TINY.head_dim) for _ in range(2))
    weights = [torch.randn(TINY.head_dim) for _ in range(2)]
    forward, backward = least_bytes("qk_norm_rope", [q, k, *weights])
    angles = [torch.randn(length, TINY.head_dim // 6) for length in (TINY.frames, TINY.height, TINY.width)]
    tables = 2 * sum(axis.nbytes for axis in angles)  # cosine and sine
    expected = [forward + tables, backward + tables]
    assert [w.minimum for w in works(TINY) if w.operator == "qk_norm_rope"] == expected


def test_least_bytes_of_attention_are_those_of_its_tensors() -> None:
    q, k, v = (tokens().view(1, TINY.tokens, TINY.heads, TINY.head_dim) for _ in range(3))
    forward, backward = least_bytes("attention", [q, k, v], return_lse=True)
    # Backward also reads the output; the gradient of the log-sum-exp is absent, itself is read.
    assert [w.minimum for w in works(TINY) if w.operator == "attention"] == [forward, backward + q.nbytes]


def test_attention_of_the_7b_is_the_published_amount() -> None:
    # 28 layers: 1.455e15 forward, and 2.5 times that backward.
    forward, backward = (w for w in works(TRANSFER1_7B) if w.operator == "attention")
    assert 28 * forward.matrix_flops == pytest.approx(1.455e15, rel=1e-3)
    assert backward.matrix_flops == 2.5 * forward.matrix_flops
    assert (TRANSFER1_7B.tokens, PREDICT25_2B.tokens) == (56_320, 84_480)
    assert [s.channels for s in SHAPES] == [4096, 2048, 5120]


def test_roof_is_the_longest_of_its_three_times() -> None:
    work = Work("o", "fwd", TINY, minimum=8_000_000, vector_flops=75)
    assert work.roof(B200) == (1e-6, "memory")
    assert replace(work, matrix_flops=int(2250e12)).roof(B200) == (1.0, "matrix")
    assert replace(work, vector_flops=int(67e12)).roof(H100) == (1.0, "vector")


def test_traffic_counts_every_tensor_of_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimpleNamespace(arg_names=["x", "keys", "absent", "n"], __name__="walk")
    x, wide = torch.empty(10, device="meta"), torch.empty(4, 30, device="meta", dtype=torch.bfloat16)

    def call() -> None:
        for _ in range(2):
            launch(kernel, (5,), x, wide[:, :10], None, 7, num_warps=4, BLOCK=16)

    assert traffic(call, 90) == Traffic(moved=2 * (40 + 80), once=2 * (40 + 80), launches=2)
    monkeypatch.setitem(traffic_module.PASSES, ("walk", "keys"), lambda launch: launch.grid[0])
    assert traffic(call, 90) == Traffic(moved=2 * (40 + 5 * 80), once=2 * (40 + 80), launches=2)


@pytest.mark.needs("triton")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("arch", DEVICES)
def test_memory_bound_kernels_move_little_more_than_they_must(shape: Shape, arch: int) -> None:
    moved = traffics(shape, arch)
    ratios = {
        (w.operator, w.mode): moved[w.operator, w.mode].moved / w.minimum
        for w in works(shape)
        if (w.operator, w.mode) in moved and not w.matrix_flops
    }
    assert len(ratios) >= 4
    assert all(1 <= ratio < 1.15 for ratio in ratios.values()), ratios


def test_cuda_kernels_are_counted_with_what_their_launch_adds() -> None:
    found = CudaKernel("adaln", "adaln_backward_kernel<bf16, 8, true>", 90, 256, 40, 0, 8, 4, shared=512)
    row, small = resources(found, {Launch(256, 49152): ["a", "b"], Launch(128, 24576): ["c"]})
    assert (row.operator, row.kernel) == ("CUDA adaln", "adaln_backward_kernel")
    assert (row.config, small.config) == ("bf16, 8, true: a, b", "bf16, 8, true: c")
    assert (row.shared, small.shared, small.threads) == (512 + 49152, 512 + 24576, 128)
    assert (row.spill_stores, row.spill_loads) == (2, 1)
    (only,) = resources(replace(found, kernel="other_kernel", matrix=3), {})
    assert (only.config, only.shared, only.threads, only.matrix) == ("-", 512, 256, {"HMMA": 3})


def test_report_holds_figures_complaints_and_says_that_nothing_is_timed() -> None:
    kernel = Resources("op", "good", "c", 90, threads=128, registers=172, stack=0, shared=80 * 1024)
    bad = replace(kernel, kernel="bad", stack=64)
    work = Work("op", "fwd", TINY, minimum=1000)
    moved = {"CUDA": Traffic(moved=2_500, once=1_250, launches=3)}
    report = Report({"Triton": "3"}, [kernel, bad], [Failure("broken [c] sm_80", "no")], [(work, moved)])
    assert len(report.complaints()) == 2
    assert "good" not in "".join(report.complaints())
    for text in (report.as_markdown(), report.as_text()):
        assert "2 (12%)" in text and "spills: 64 bytes" in text and "broken [c] sm_80: no" in text
    assert "| Triton moved MB | Triton ratio | CUDA moved MB | CUDA ratio |" in report.as_markdown()
    assert "| 0.0 | - | - | 0.0 | 2.5 (1.25) |" in report.as_markdown()
    assert report.as_markdown().count("not timed") == 3
    written = report.as_json()
    assert written["roofline"][0]["traffic"] == {
        "CUDA": {"moved": 2_500, "once": 1_250, "launches": 3, "moved_over_minimum": 2.5}
    }
    assert written["kernels"][0]["occupancy"]["blocks"] == 2
    assert written["not_compiled"] == []
    assert all(roof["status"].endswith("not timed") for roof in written["roofline"][0]["roof"].values())


def test_a_report_without_cuda_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Resources("op", "good", "c", 90, threads=128, registers=172, stack=0, shared=80 * 1024)
    monkeypatch.setattr(bench_gpu_static, "SHAPES", ())
    monkeypatch.setattr(bench_gpu_static, "compile_kernels", lambda **_: [kernel])
    monkeypatch.setattr(bench_gpu_static, "emulated", SimpleNamespace(module=lambda: None))
    monkeypatch.setattr(bench_gpu_static, "compiler", lambda: None)
    report = bench_gpu_static.gather()
    said = "CUDA kernels: not compiled, no nvcc"
    assert report.as_json()["not_compiled"] == [said] and said in report.as_text()
    assert f"{said}.**\n\nNone: all of them pass." in report.as_markdown()
