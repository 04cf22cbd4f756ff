"""The operator is compiled with the module's own source, has a backend, a gradient and a schema, and equals
its reference to the last bit."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(os.environ["ADDITIONS_ROOT"])
MODULE = Path("python/cosmos_distill") / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
subprocess.run(
    [
        "g++", "-std=c++17", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-DCD_MODULE=_C",
        f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
        str(ROOT / "csrc" / "bindings.cpp"), "csrc/scratch.cpp", "-o", str(MODULE),
    ],
    check=True,
)  # fmt: skip
TRIED = """
import torch
from cosmos_distill import ops
x = torch.randn(3, 5, dtype=torch.bfloat16).requires_grad_()
y = ops.scratch_scale(x, 3.0, backend="cpu")
assert torch.equal(y, ops.scratch_scale(x, 3.0, backend="reference"))
(gradient,) = torch.autograd.grad(y.sum(), x)
assert torch.equal(gradient, torch.full_like(x, 3.0))
torch.library.opcheck(torch.ops.cosmos_distill.scratch_scale.default, (x, 3.0, "cpu"))
import cosmos_distill.ops.dtensor
try:
    ops.compiled.kernels.scratch_scale(1, 2)
except ValueError as error:
    assert str(error) == "more than 2 arguments are taken", error
else:
    raise AssertionError("a call without all arguments is taken")
"""
done = subprocess.run(
    [sys.executable, "-S", "-W", "ignore", "-c", TRIED], env=os.environ | {"ATEN_CPU_CAPABILITY": "default"}
)
sys.exit(done.returncode)
