"""What `pip install .` promises: the declared dependencies are the imported ones, the wheel holds what the
package needs, and the package works where no compiler was found."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cosmos_distill

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "cosmos_distill"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Names that differ between the import and the distribution.
DISTRIBUTION = {
    "megatron": "megatron-core",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "skvideo": "scikit-video",
    "yaml": "pyyaml",
}


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower()


def declared() -> set[str]:
    """Every distribution the package may import: mandatory, or of an extra meant for users."""
    project = PROJECT["project"]
    wanted = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        if extra != "test":
            wanted += requirements
    return {requirement_name(r) for r in wanted}


def imported() -> dict[str, Path]:
    """Third-party distribution -> a file of the package that imports it."""
    found: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "cosmos_distill":
                    found[DISTRIBUTION.get(top, top).lower()] = path.relative_to(ROOT)
    return found


def test_every_import_is_declared():
    missing = {name: str(path) for name, path in imported().items() if name not in declared()}
    assert not missing, f"imported but neither a dependency nor in a user's extra: {missing}"


def test_the_version_has_one_value():
    assert PROJECT["project"]["version"] == cosmos_distill.__version__


def test_the_command_exists():
    module, function = PROJECT["project"]["scripts"]["cosmos-distill"].split(":")
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_constraints_pin_versions_and_name_no_place_to_download_from():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert pins and all("==" in pin and "://" not in pin and not pin.startswith("-") for pin in pins)


def test_without_the_compiled_module_the_operators_still_work_and_say_so_once():
    code = """
import sys, warnings
class NoCompiler:
    def find_spec(self, name, path=None, target=None):
        if name == "cosmos_distill._C":
            raise ImportError("as if it had not been built")
sys.meta_path.insert(0, NoCompiler())
import torch
from cosmos_distill import ops
x, m = torch.ones(1, 2, 4), torch.zeros(1, 4)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        ops.adaln_modulate(x, m, m)
        ops.gated_residual_adaln(x, x, m, m, m)
print(len(said), said[0].message)
print([str(one.message).split()[0] for one in said])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.startswith("2 "), run.stdout  # once for each operator
    assert "['adaln_modulate', 'gated_residual_adaln']" in run.stdout
    assert "compiled module is missing" in run.stdout


@pytest.mark.needs("build backend", "cmake")
def test_the_wheel_holds_what_the_package_needs(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    # Not optimised, which takes most of the time: the set-up builds the same modules as they are used.
    recipe = (ROOT / "CMakeLists.txt").read_text()
    assert ":-O3 " in recipe
    (source / "CMakeLists.txt").write_text(recipe.replace(":-O3 ", ":-O0 "))
    for name in ("python", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    # Without nvcc's part, which takes a minute and has tests of its own.
    off = {
        "cmake.define.COSMOS_DISTILL_CUDA": "OFF",
        "cmake.define.CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF",
    }
    build = f"import scikit_build_core.build as b; print(b.build_wheel('.', {off}))"
    run = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        compiled = [n for n in names if re.fullmatch(r"cosmos_distill/_C(_\w+)?\..*\.(so|pyd)", n)]
        assert len(compiled) == (4 if platform.machine() == "x86_64" else 1), names
        for name in compiled:
            assert b"libtorch" not in archive.read(name), "one build must serve every torch version"
    data = [p for p in PACKAGE.rglob("*") if p.suffix in (".safetensors", ".typed", ".json", ".npz")]
    wanted = {str(p.relative_to(PACKAGE.parent)) for p in [*data, *PACKAGE.rglob("*.py")]}
    assert wanted <= set(names), sorted(wanted - set(names))
    assert not [n for n in names if n.startswith(("tests/", "csrc/", "benchmarks/"))]


def configure(source: Path, choice: str, path: str) -> subprocess.CompletedProcess[str]:
    """CMake's configuration step with COSMOS_DISTILL_CUDA set, and this PATH."""
    import pybind11

    command = [
        shutil.which("cmake") or "cmake",
        "-S",
        str(source),
        "-B",
        str(source / f"build-{choice}"),
        "-DCOSMOS_DISTILL_CUDA=" + choice,
    ]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDA_HOME")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, "PATH": path}
    )


@pytest.mark.needs("build backend", "cmake")
def test_cuda_is_never_required_and_never_pretended(tmp_path: Path):
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    # A PATH with a C++ compiler and make or ninja, but no nvcc.
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in (
        "c++",
        "g++",
        "cc",
        "gcc",
        "clang",
        "clang++",
        "make",
        "ninja",
        "as",
        "ld",
        "ar",
        "ranlib",
        "uname",
    ):
        if (found := shutil.which(tool)) is not None:
            (tools / tool).symlink_to(found)
    assert configure(tmp_path, "AUTO", str(tools)).returncode == 0
    misspelt = configure(tmp_path, "MAYBE", str(tools))
    assert misspelt.returncode != 0 and "must be AUTO, ON or OFF" in misspelt.stderr
    asked = configure(tmp_path, "ON", str(tools))
    assert asked.returncode != 0
    assert "no CUDA compiler was found" in asked.stderr or "has no CUDA operators" in asked.stderr
