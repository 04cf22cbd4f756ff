"""Every build of the CPU operators (one per instruction set) that this machine can run, against fp64."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import compiled
from tests.ops.builds import BUILDS, runnable
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

pytestmark = pytest.mark.compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[name for capability in runnable() for name in BUILDS[capability]])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has all operators run by one build."""
    name: str = request.param
    kernels = importlib.import_module(f"cosmos_distill.{name}")
    for operator in ("adaln", "adamw", "dm_loss", "qknorm"):
        monkeypatch.setattr(importlib.import_module(f"cosmos_distill.ops.{operator}.cpu"), "kernels", kernels)
    return name


def numbers(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in shapes]


# Below a tile, tiles with a rest, and results that are streamed.
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 37, 200), (1, 2100, 2048)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adaln(build: str, shape: tuple[int, int, int], dtype: torch.dtype):
    row = (shape[0], shape[2])

    def modulated(seed: int) -> Case:
        x, grad, *rows = numbers(seed, shape, shape, row, row)
        return ops.adaln_modulate, (x, *rows), (grad,)

    def gated(seed: int) -> Case:
        x, y, a, b, *rows = numbers(seed, *[shape] * 4, row, row, row)
        return ops.gated_residual_adaln, (x, y, *rows), (a, b)

    for case in (modulated, gated):
        assert_as_good_as_torch([case(0)] if shape[1] > 1000 else draws(case), dtype=dtype)


# Heads of whole vectors, of the narrowest ones only, and of neither.
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [128, 64, 48, 80, 6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope(build: str, dim: int, interleaved: bool, dtype: torch.dtype):
    def case(seed: int) -> Case:
        q, k, a, b = numbers(seed, *[(2, 19, 3, dim)] * 4)
        q_weight, k_weight, cos, sin = numbers(seed, (dim,), (dim,), (19, dim), (19, dim))

        def operator(*tensors: Tensor, backend: str) -> tuple[Tensor, Tensor]:
            tables = [t.double() if tensors[0].dtype == torch.float64 else t for t in (cos, sin)]
            return ops.qk_norm_rope(*tensors, *tables, interleaved=interleaved, backend=backend)

        return operator, (q, k, q_weight, k_weight), (a, b)

    assert_as_good_as_torch(draws(case), dtype=dtype)


@pytest.mark.parametrize("shape", [(2, 3, 2, 5, 7), (1, 16, 8, 88, 160)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vsd_loss(build: str, shape: tuple[int, ...], dtype: torch.dtype):
    def case(seed: int) -> Case:
        student, teacher, fake, uncond, x_t = (t.to(dtype) for t in numbers(seed, *[shape] * 5))
        where = ops.Preconditioned(x_t, torch.full(shape[:1], 0.3), torch.full(shape[:1], -0.7))

        def operator(x: Tensor, backend: str) -> Tensor:
            return ops.vsd_loss(
                x, teacher, fake, uncond=uncond, guidance=3.0, preconditioned=where, backend=backend
            )

        return operator, (student,), (torch.ones(shape[0]),)

    # The loss is one number a sample even where the direction is streamed.
    assert_as_good_as_torch(draws(case) if shape[0] > 1 else map(case, range(4)), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_narrow_number_is_read_and_rounded_as_torch_does(build: str, dtype: torch.dtype):
    from cosmos_distill.ops.dm_loss import cpu

    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, -1)
    read = cpu.renoise(every, torch.zeros_like(every), None, torch.zeros(1))
    torch.testing.assert_close(read, every.float(), rtol=0, atol=0, equal_nan=True)
    for factor in (1.0, 1 / 3, 2.0**-9, 3.0 * 2**-12, 1.0005, 700.0):
        got = cpu.vsd_gradient(every, torch.tensor([factor]))
        want = (every.float() * factor).to(dtype)
        if build == "_C_avx512_bf16" and dtype == torch.bfloat16:
            got, want = (torch.where(x.abs() <= torch.finfo(dtype).tiny, 0, x) for x in (got, want))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("capability", runnable())
def test_the_build_is_the_one_for_what_torch_runs_on(capability: str):
    code = "from cosmos_distill.ops.compiled import kernels; print(kernels.__name__)"
    env = os.environ | {"ATEN_CPU_CAPABILITY": capability.lower()}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.strip() == f"cosmos_distill.{BUILDS[capability][-1]}"


def test_a_build_that_cannot_be_imported_is_missed_once():
    build = BUILDS[runnable()[-1]][-1]
    if build == "_C":
        pytest.skip("this CPU has but one build")
    code = (
        f"import sys, torch; sys.modules['cosmos_distill.{build}'] = None; from cosmos_distill import ops\n"
        "for _ in range(2): ops.renoise(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), backend='cpu')\n"
        "x = torch.ones(1, 2, 4); ops.adaln_modulate(x, x[:, 0], x[:, 0])\n"
        "from cosmos_distill.ops.compiled import kernels; print(kernels.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "cosmos_distill._C"
    assert run.stderr.count("BackendFallback") == 1
    assert f"cosmos_distill.{build}" in run.stderr and "reinstall" in run.stderr


def test_a_module_of_other_sources_serves_nothing():
    """One that was built before an argument changed its meaning would read other memory: it counts as
    missing."""
    code = """
import sys, types, warnings
import torch
import cosmos_distill
old = types.ModuleType("cosmos_distill._C")
old.__file__, old.has_avx512_bf16 = "old.so", lambda: False
sys.modules["cosmos_distill._C"] = cosmos_distill._C = old
from cosmos_distill import ops
x, m = torch.ones(1, 2, 4), torch.zeros(1, 4)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ops.adaln_modulate(x, m, m)
print(said[0].message)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "old.so was built from another version of the sources" in run.stdout


def test_the_number_of_the_interface_is_one():
    """In the sources, in Python and in what was built."""
    csrc = Path(__file__).parents[2] / "csrc"
    header = (csrc / "common" / "operator.h").read_text()
    assert f"constexpr int INTERFACE = {compiled.INTERFACE};" in header
    assert compiled.kernels.interface == compiled.INTERFACE
