"""Every CUDA C++ kernel compiles for A100, H100 and B200 and takes no more than it may."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import cuda_kernels, emulated, gates, nvcc
from benchmarks.gpu.cuda_launches import Launch, launches
from benchmarks.gpu.nvcc import ARCHS
from benchmarks.gpu.resources import Resources
from tests import lanes

Launches = dict[str, dict[Launch, list[str]]]


def kernels(launched: Launches, sources: Iterable[Path] = nvcc.SOURCES) -> list[Resources]:
    lanes.require("nvcc")
    found = cuda_kernels.compile_kernels(launched, sources)
    assert all(isinstance(one, Resources) for one in found), found
    return [one for one in found if isinstance(one, Resources)]


@pytest.fixture(scope="module")
def launched() -> Launches:
    lanes.require("emulator")
    return launches(emulated.module())


@pytest.fixture(scope="module")
def compiled(launched: Launches) -> list[Resources]:
    return kernels(launched)


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


def test_what_is_compiled_is_what_is_launched_and_within_its_bounds(
    compiled: list[Resources], launched: Launches
):
    bounds = {one.kernel: one.threads for one in nvcc.compile_cuda()}
    assert set(bounds) == set(launched)
    assert all(way.threads <= bounds[kernel] for kernel, ways in launched.items() for way in ways)


def test_launches_are_those_of_the_operators(launched: Launches):
    # A row of 4096 bf16; three sums of them; an sm_80's shared memory holds this twice.
    assert Launch(256, 4096 * 2) in launched["adaln_forward_kernel<bf16, bf16, bf16, 8, true>"]
    assert Launch(256, 3 * 4096 * 4) in launched["adaln_backward_kernel<bf16, bf16, bf16, 8, true>"]
    assert list(launched["attention_kernel<bf16, 128>"]) == [Launch(128, 80 * 1024)]
    # Cosines and sines, and a sum for each team of 8 lanes.
    assert Launch(256, (2 + 256 // 8) * 128 * 4) in launched["norm_rope_backward_kernel<bf16, 8, false>"]


def test_attention_runs_on_tensor_cores_and_nothing_else_does(compiled: list[Resources]):
    for one in compiled:
        assert bool(one.matrix.get("HMMA")) == one.kernel.startswith("attention"), one


@pytest.mark.parametrize("fault", [{"stack": 24}, {"fp64": 1}, {"shared": 300_000}, {"registers": 512}])
def test_a_fault_is_refused(compiled: list[Resources], fault: dict[str, int]):
    assert gates.complaints(replace(compiled[0], **fault))


def test_planted_kernels_are_refused_for_their_one_fault():
    expected = {"clean_kernel": None, "converting_kernel": "64-bit floats", "spilling_kernel": "spills"}
    found = kernels({}, [Path(__file__).with_name("planted.cu")])
    assert {(one.kernel, one.arch) for one in found} == {(name, arch) for name in expected for arch in ARCHS}
    for one in found:
        said, fault = gates.complaints(one), expected[one.kernel]
        assert len(said) == (fault is not None) and all(fault in text for text in said), (one.label, said)


def test_instructions_on_64_bits_are_counted():
    opcodes = ("F2F.F64.F32", "MUFU.RCP64H", "FADD")
    listing = ".text.k:\n" + "".join(f"    /*{i:04x}*/  {op} R0, R1 ;\n" for i, op in enumerate(opcodes))
    ptx = ".entry k(\n) { cvt.f64.f32 %fd1, %f1; rcp.rn.f64 %fd2, %fd1; add.f32 %f1, %f1, %f1; }"
    for found in (nvcc.count_sass(listing), nvcc.count_ptx(ptx)):
        assert found == {"k": nvcc.Instructions(matrix=0, fp64=2)}


def test_nvcc_is_found_among_the_packages_of_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = tmp_path / "nvidia/cu13/bin/nvcc"
    tool.parent.mkdir(parents=True)
    tool.touch()
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert nvcc.compiler() == str(tool)


def test_the_packages_named_are_those_of_the_extra():
    project = tomllib.loads((nvcc.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert tuple(project["optional-dependencies"]["nvcc"]) == nvcc.PACKAGES
    assert all(package in nvcc.MISSING for package in nvcc.PACKAGES)
