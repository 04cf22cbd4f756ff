"""The emulator's own tests: without a barrier a kernel's numbers are wrong, and at a barrier that threads do
not reach together it stops with a message."""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import emulated
from cosmos_distill import ops
from tests.ops.tolerance import assert_as_good_as_torch


@cache
def library(*defines: str) -> Path:
    """csrc/adaln.cu and planted.cpp."""
    name = "-".join(["planted", *(d.removeprefix("-D").lower() for d in defines)])
    sources = [emulated.CSRC / "adaln.cu", Path(__file__).with_name("planted.cpp")]
    return emulated.build(f"{name}.so", sources, ["-O1", *defines], ["-shared"])


def compare_with_fp64(*defines: str) -> None:
    kernel = ctypes.CDLL(str(library(*defines))).adaln

    def operator(x: Tensor, shift: Tensor, scale: Tensor, backend: str) -> Tensor:
        exact = ops.adaln_modulate(x, shift, scale, backend="reference")
        if backend == "reference":
            return exact
        out, stats = torch.empty_like(x), torch.empty(*x.shape[:2], 2)
        sizes = map(ctypes.c_int64, x.shape[1:])
        kernel(*sizes, *(ctypes.c_void_p(t.data_ptr()) for t in (x, shift, scale, out, stats)))
        return exact + (out - exact).detach()  # with gradients, which are none of this test's business

    draw = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(1, 3, 4104, generator=draw) for _ in range(2))
    shift, scale = (torch.randn(1, 4104, generator=draw) for _ in range(2))
    assert_as_good_as_torch([(operator, (x, shift, scale), (grad,))], "planted")


def test_a_missing_barrier_gives_wrong_numbers():
    compare_with_fp64()
    with pytest.raises(AssertionError, match="output 0: error"):
        compare_with_fp64("-DCD_PLANT_RACE")


@pytest.mark.parametrize(
    ("block_barriers_only", "said"),
    [
        (1, r"divergent __syncthreads: some threads wait at .*planted.cpp:\d+, others at .*planted.cpp:\d+"),
        (0, "divergent barrier: of 32 running threads, 16 wait at __syncthreads and the others elsewhere"),
    ],
)
def test_threads_that_part_at_a_barrier_are_told_of(block_barriers_only: int, said: str):
    call = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).diverge; f.restype = ctypes.c_char_p"
    script = f"{call}; print(f({block_barriers_only}).decode())"
    # In a process of its own, which can be ended if it hangs.
    done = subprocess.run(
        [sys.executable, "-c", script, library()], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search(r"CUDA kernel diverging could not be launched: block \(0, 0, 0\): " + said, done.stdout)


def test_emulated_functions_are_gone_when_they_are_no_longer_installed():
    name = "cosmos_distill.ops.adaln.cuda"
    functions = emulated.module()
    with pytest.raises(KeyError), emulated.installed(functions):
        assert importlib.import_module(name).functions is functions
        raise KeyError
    assert name not in sys.modules and "cosmos_distill.ops.cuda_launch" not in sys.modules
    assert not hasattr(sys.modules["cosmos_distill.ops.adaln"], "cuda")
