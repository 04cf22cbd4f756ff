"""Every CUDA C++ kernel compiles for A100, H100 and B200 and takes no more than it may."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gpu import cuda_kernels, gates
from benchmarks.gpu.nvcc import ARCHS, compiler
from benchmarks.gpu.resources import Resources


@pytest.fixture(scope="module")
def compiled() -> list[Resources]:
    if compiler() is None:
        pytest.skip("no nvcc: the CUDA operators cannot be compiled ahead of time")
    kernels = cuda_kernels.compile_kernels()
    assert all(isinstance(one, Resources) for one in kernels), kernels
    return [one for one in kernels if isinstance(one, Resources)]


def test_every_kernel_compiles_within_the_limits(compiled: list[Resources]):
    names = {one.kernel for one in compiled}
    assert {one.arch for one in compiled} == set(ARCHS)
    assert {
        "adaln_backward_kernel",
        "norm_rope_forward_kernel",
        "vsd_kernel",
        "attention_dkv_kernel",
    } <= names
    assert not [text for one in compiled for text in gates.complaints(one)]


def test_attention_runs_on_tensor_cores_and_nothing_else_does(compiled: list[Resources]):
    for one in compiled:
        assert bool(one.matrix.get("HMMA")) == one.kernel.startswith("attention"), one


@pytest.mark.parametrize("fault", [{"stack": 24}, {"fp64": 1}, {"shared": 300_000}, {"registers": 512}])
def test_a_fault_is_refused(compiled: list[Resources], fault: dict[str, int]):
    assert gates.complaints(replace(compiled[0], **fault))
