"""Bytes that the CUDA kernels move at the published sizes: against arithmetic, and as recorded in gpu.json.
That kernels do what is claimed of them is tested in tests/ops/cuda/test_traffic.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import pytest

from benchmarks.bench_gpu_static import RESULTS, moved
from benchmarks.gpu import emulated
from benchmarks.gpu.calls import calls
from benchmarks.gpu.cuda_traffic import traffics, uses
from benchmarks.gpu.report import Report
from benchmarks.gpu.work import BF16, FP32, SHAPES, TRANSFER1_7B, Shape, works
from tests import lanes

# Of the 7B: a tensor of activations, a number for each of its heads, one for each of its channels.
ACTIVATION = 56_320 * 4096 * BF16
PER_HEAD = 56_320 * 32 * FP32
PER_CHANNEL = 4096 * FP32


@pytest.fixture(scope="module")
def functions() -> Iterator[ModuleType]:
    lanes.require("emulator")
    found = emulated.module()
    with emulated.installed(found):
        yield found


def test_bytes_are_those_of_arithmetic(functions: ModuleType) -> None:
    found = traffics(TRANSFER1_7B, functions)
    # Two sweeps over grad and x, dx; scale and two sums over it; 1024 partial sums of each, there and back.
    stats = 2 * 56_320 * FP32
    backward = 5 * ACTIVATION + stats + (3 + 2 * 1024 * 2) * PER_CHANNEL
    assert found["adaln_modulate", "bwd"].moved == backward
    assert found["adaln_modulate", "bwd"].once == backward - 2 * ACTIVATION
    # q and out; keys and values for each of 880 blocks of 64 queries.
    assert found["attention", "fwd"].moved == (2 + 880 * 2) * ACTIVATION + PER_HEAD
    # For dq: q, grad twice, out, dq and all keys and values. For dk and dv: these and k, v and all of q, grad
    # and the two numbers for each of their rows, written before.
    dq, dkv = 5 + 880 * 2, 4 + 880 * 2
    assert found["attention", "bwd"].moved == (dq + dkv) * ACTIVATION + (1 + 2 + 880 * 2) * PER_HEAD


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_memory_bound_kernels_move_little_more_than_they_must(shape: Shape, functions: ModuleType) -> None:
    found = traffics(shape, functions)
    assert found.keys() == {(w.operator, w.mode) for w in works(shape)}
    for work in works(shape):
        one = found[work.operator, work.mode]
        if not work.matrix_flops:
            assert work.minimum <= one.once < 1.06 * work.minimum, (work, one)
            # At most everything read is read twice.
            assert one.once <= one.moved < 1.75 * work.minimum, (work, one)


def test_every_input_reaches_a_kernel(functions: ModuleType) -> None:
    for key, call in calls(TRANSFER1_7B).items():
        given = {id(x) for x in call.arguments if hasattr(x, "data_ptr")}
        assert given <= {id(use.tensor) for use in uses(call, functions) if use.passes}, key


@pytest.mark.needs("triton")
def test_the_recorded_table_is_what_launches_say_now(functions: ModuleType) -> None:
    now = Report({}, [], [], [pair for shape in SHAPES for pair in moved(shape, functions)]).as_json()
    recorded = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    assert recorded["roofline"] == json.loads(json.dumps(now["roofline"])), "run make bench"
