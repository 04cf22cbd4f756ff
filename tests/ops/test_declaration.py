"""An operator is declared once: its folder, its files in csrc/, and the name it is offered under."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from cosmos_distill.ops.declaration import DECLARED, Kind, Kinds, declare
from cosmos_distill.ops.library import NAMESPACE, import_every_operator
from tests import lanes

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "python" / "cosmos_distill" / "ops"
HOUSE = ("*.py", "*.pyi", "*.cpp", "*.cu", "*.h", "CMakeLists.txt")
import_every_operator()


def sources() -> list[Path]:
    """Everything that the package is built of."""
    folders = (ROOT / "python", ROOT / "csrc")
    return [ROOT / "CMakeLists.txt", *(p for f in folders for kind in HOUSE for p in f.rglob(kind))]


def own(path: Path) -> tuple[str, str]:
    """An operator's folder or, of csrc/, its file without what follows its first name."""
    if path.is_relative_to(OPS):
        return "ops", path.relative_to(OPS).parts[0]
    return (path.parent.name, re.split(r"[._]", path.stem)[0]) if path.suffix != ".py" else ("", path.name)


@pytest.mark.parametrize(
    "name", ["adaln_backward", "gated_adaln_forward", "norm_rope_backward", "squared_error"]
)
def test_a_compiled_function_is_known_to_two_rooms(name: str):
    """The folder of its operator, and the files of csrc/ that have it. It was known to 18 files."""
    known = [p for p in sources() if re.search(rf"\b{name}\b", p.read_text(encoding="utf-8"))]
    rooms = {own(p) for p in known}
    assert len(rooms) == 2 and {kind for kind, _ in rooms} == {"ops", "csrc"}, known


def test_what_is_generic_names_no_operator():
    generic = [OPS / f for f in ("library.py", "registry.py", "dtensor.py", "compiled.py", "__init__.py")]
    generic += [
        ROOT / "CMakeLists.txt",
        OPS.parent / "_C.pyi",
        ROOT / "csrc/bindings.cpp",
        ROOT / "csrc/bindings.h",
    ]
    generic += [
        ROOT / "benchmarks/gpu" / f
        for f in ("calls.py", "work.py", "traffic.py", "cuda_traffic.py", "cuda_launches.py")
    ]
    for path in generic:
        text = path.read_text(encoding="utf-8")
        # `attention` is an operator's name and a word.
        assert not [n for n in DECLARED.keys() - {"attention"} if re.search(rf"\b{n}\b", text)], path


KINDS = Kinds({"x": Kind("*G N D", None), "row": Kind("*G D")}, split="*G N")


@pytest.fixture
def undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(DECLARED):
        monkeypatch.setitem(DECLARED, name, DECLARED[name])
    monkeypatch.delitem(DECLARED, "tried", raising=False)


def test_a_declaration_says_schema_shapes_and_ways_to_split(undeclared: None):
    one = declare("tried(x x, row? shift, float eps) -> (x, row(x))", KINDS)
    assert one.schema == "tried(Tensor x, Tensor? shift, float eps, str backend) -> (Tensor, Tensor)"
    x = torch.empty(2, 3, 4, 8, dtype=torch.bfloat16)
    like, row = one.shapes(x, None, 1e-6, "cpu")
    assert (like.shape, like.dtype, row.shape, row.dtype) == (x.shape, x.dtype, (2, 3, 8), torch.float32)
    # Samples, frames and tokens; over those the row is whole, and its gradient a sum.
    assert one.ways(x, torch.empty(2, 3, 8), 1e-6) == [
        ([0, 0], [0, 0, None]),
        ([1, 1], [1, 1, None]),
        ([2, None], [2, None, None]),
    ]
    del DECLARED["tried"]


@pytest.mark.parametrize("text", ["tried(x x)", "tried(x x) -> row(y)", "tried(y x) -> x"])
def test_what_is_not_a_declaration_is_refused(text: str, undeclared: None):
    with pytest.raises(ValueError, match="tried"):
        declare(text, KINDS)


SCRATCH = {
    "ops/scratch/__init__.py": """
        from torch import Tensor
        from .. import registry
        from . import fused, reference
        registry.serve("scratch", scratch_scale=(registry.CPU, registry.REFERENCE))
        def scratch_scale(x: Tensor, factor: float, *, backend: str | None = None) -> Tensor:
            if registry.pick("scratch_scale", backend, x) == "reference":
                return reference.scratch_scale(x, factor)
            return fused.scale(x.contiguous(), factor, "cpu")
    """,
    "ops/scratch/reference.py": """
        def scratch_scale(x, factor):
            return x * factor
    """,
    "ops/scratch/fused.py": """
        from ..declaration import Kinds, narrow
        from ..library import define_differentiable, kernel
        def save(ctx, inputs, output):
            ctx.factor = inputs[1]
        scale = define_differentiable(
            "scratch_scale(x x, float factor) -> x", Kinds({"x": narrow("B *rest")}, split="B"),
            kernel("scratch", "scratch_scale"), save, lambda ctx, grad: (grad * ctx.factor, None, None),
        )
    """,
    "ops/scratch/cpu.py": """
        import torch
        from ..compiled import kernels
        from ..elements import ELEMENTS
        def scratch_scale(x, factor):
            out = torch.empty_like(x)
            kernels.scratch_scale(ELEMENTS[x.dtype], x.numel(), x.data_ptr(), factor, out.data_ptr())
            return out
    """,
}
SCRATCH_CPP = """
#include "common/operator.h"
namespace cd {
template <class T>
void scratch_scale(int64_t n, const T* x, float factor, T* out) {
    for (int64_t i = 0; i < n; i++) out[i] = narrow<T>(load(x[i]) * factor);
}
CD_OPERATOR(scratch_scale)
}  // namespace cd
"""
TRIED = """
import sys
# Not to the package that is installed.
sys.meta_path = [one for one in sys.meta_path if "Redirecting" not in type(one).__name__]
import torch
from cosmos_distill import ops
x = torch.randn(3, 5, dtype=torch.bfloat16).requires_grad_()
y = ops.scratch_scale(x, 3.0)
assert torch.equal(y, ops.scratch_scale(x, 3.0, backend="reference"))
torch.library.opcheck(torch.ops.cosmos_distill.scratch_scale.default, (x, 3.0, "cpu"))
import cosmos_distill.ops.dtensor
try:
    ops.compiled.kernels.scratch_scale(1, 2)
except ValueError as error:
    print(error)
print(sorted(ops.compiled.kernels.__dict__.keys() & {"scratch_scale", "adaln_forward"}))
"""


@pytest.mark.needs("g++", "build backend")
def test_an_operator_is_added_by_its_folder_its_source_and_its_name(tmp_path: Path):
    """In a copy of the package, built of the module's own source and that of the new operator alone."""
    import pybind11

    package = tmp_path / "cosmos_distill"
    shutil.copytree(OPS, package / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    for name, text in SCRATCH.items():
        (package / name).parent.mkdir(exist_ok=True)
        lines = text.strip("\n").splitlines()
        (package / name).write_text("\n".join(line.removeprefix(" " * 8) for line in lines) + "\n")
    with (package / "ops/__init__.pyi").open("a") as stub:
        stub.write("from .scratch import scratch_scale as scratch_scale\n")
    source = tmp_path / "scratch.cpp"
    source.write_text(SCRATCH_CPP)
    module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-DCD_MODULE=_C"]
    if shutil.which("g++") is None:
        lanes.missing("no g++")
    subprocess.run(
        ["g++", *flags, *includes, str(ROOT / "csrc/bindings.cpp"), str(source), "-o", str(module)],
        check=True,
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRIED],
        capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "ATEN_CPU_CAPABILITY": "default"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["more than 2 arguments are taken", "['scratch_scale']"], run.stdout


def test_every_registered_operator_but_those_in_place_is_declared():
    known = {
        n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{NAMESPACE}::")
    }
    assert known - DECLARED.keys() == {"adamw_ema"}
