"""The arrows of the design, read off the imports: which part may know which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmos_distill.data.index import reading

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "cosmos_distill"
SOURCES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

# Part -> the parts it may import. A part is a folder or file right under the package; what is not listed
# here (cli, stages) may import everything. `data.batch` is narrower than `data`: that one file only.
# A method builds its discriminator itself (models.common.heads), and is handed every other network.
EVERYTHING_BELOW = {
    "arrays", "config", "controls", "data", "diffusion", "errors", "families", "files", "methods", "models",
    "members", "ops", "parallel", "randomness", "ranges", "storage", "text", "tokenizers", "train",
    "to_device", "vision",
}  # fmt: skip
ARROWS: dict[str, set[str]] = {
    "ranges": set(),
    "families": {"ranges"},
    "config": {"ranges", "families"},
    "files": set(),
    "members": {"files"},
    "randomness": {"to_device"},
    "to_device": set(),
    "storage": {"files", "arrays"},
    "ops": set(),
    "diffusion": {"ops", "config"},
    "parallel": {"ops", "config"},
    "arrays": {"files", "members"},
    "controls": {
        "config",
        "data.errors",
        "data.opencv",
        "ops.bilateral",
        "ops.registry",
        "randomness",
        "vision",
    },
    "vision": {"data.errors", "files"},
    "models": {"ops", "parallel", "diffusion", "config", "families", "files", "arrays", "ranges", "storage"},
    "methods": {
        "ops",
        "diffusion",
        "config",
        "data.batch",
        "data.conditioning",
        "models.common.heads",
        "randomness",
        "ranges",
    },
    "text": {"files", "arrays", "config"},
    "tokenizers": {"config", "families", "files", "arrays", "models"},
    "data": {
        "config",
        "controls",
        "diffusion",
        "errors",
        "tokenizers",
        "text",
        "files",
        "members",
        "arrays",
        "randomness",
        "storage",
        "vision",
        "to_device",
    },
    "train": {
        "arguments",
        "errors",
        "ranges",
        "methods",
        "models",
        "data",
        "parallel",
        "config",
        "files",
        "arrays",
        "randomness",
        "storage",
    },
    "eval": {"config", "controls", "data.errors", "data.opencv", "data.packages", "pages", "vision"},
    "pages": set(),
    "inspection": {
        "config",
        "data",
        "errors",
        "files",
        "members",
        "pages",
        "ranges",
        "run",
        "storage",
        "train.guard",
    },
    "errors": set(),
    "arguments": {"errors", "ranges"},
    "adapters": {"arguments", "config", "diffusion", "errors", "models.common.given", "ranges"},
    "integrations": {"adapters", "config", "families", "models.common.given", "ops", "parallel.agreement"},
    "launch": {
        "config",
        "data",
        "diffusion",
        "errors",
        "families",
        "methods",
        "models",
        "ops",
        "parallel",
        "randomness",
        "ranges",
        "train.plan",
    },
    "run": EVERYTHING_BELOW | {"adapters", "eval", "launch"},
    "sampling": EVERYTHING_BELOW | {"launch", "run"},
}
# Of third-party packages, the heavy ones belong to one part each; megatron is the contract's. An owner is a
# part, or one folder of it.
OWNERS = {
    "megatron": {"parallel"},
    "av": {"data", "eval", "run", "sampling", "stages", "train"},
    "tyro": {"cli"},
    "tensorboard": {"train"},
    "triton": {"ops"},
    "diffusers": {"models", "tokenizers", "ops.integrations", "integrations"},
    "torchmetrics": {"eval.features"},
    "transformers": {"eval.features", "text", "vision"},
}
# Modules that must not import torch, nor any module that does, when they are imported: `--help` is instant.
LIGHT = [
    "__init__",
    "__main__",
    "randomness",
    "ranges",
    "storage",
    "members",
    "config",
    "cli/__init__",
    "controls/__init__",
    "data/conditioning",
    "ops/__init__",
    "diffusion/__init__",
    "families",
    "models/common/config",
    *(f"{part}/{path.stem}" for part in ("text", "tokenizers") for path in (PACKAGE / part).glob("*.py")),
    "diffusion/teacher",
    "parallel/__init__",
    "parallel/agreement",
    "parallel/runs",
    "models/__init__",
    "text/__init__",
    "vision/__init__",
    "errors",
    "launch/__init__",
    "launch/layouts",
    "launch/options",
    "launch/scripts",
    "run/__init__",
    "run/runner",
    "run/manifest",
    "inspection/__init__",
    "inspection/options",
    "sampling/__init__",
    "sampling/options",
]
HEAVY = {"torch", "megatron", "triton", "av", "cv2", "safetensors", "tensorboard", "diffusers", "scipy"}
LONGEST = 500
# Vocabularies: files of data that know no other part, so that parts below data may name them.
LEAVES = ("data.batch", "data.conditioning", "data.errors", "data.opencv")


@dataclass(frozen=True)
class Import:
    """``module`` as an absolute dotted name; ``at_import`` unless inside a function or TYPE_CHECKING."""

    module: str
    line: int
    at_import: bool
    for_types: bool


def module_name(path: Path) -> str:
    """python/cosmos_distill/ops/__init__.py -> cosmos_distill.ops"""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir() or path.with_suffix(".pyi").is_file()


def imports(path: Path) -> list[Import]:
    """Every import of a file, ``from x import y`` as x.y where that is a module of ours."""
    inside = path.is_relative_to(PACKAGE)
    here = module_name(path).split(".") if inside else []
    if inside and path.name != "__init__.py":
        here = here[:-1]
    found: list[Import] = []

    def add(names: list[str], node: ast.stmt, at_import: bool, for_types: bool) -> None:
        found.extend(Import(name, node.lineno, at_import and not for_types, for_types) for name in names)

    def visit(node: ast.AST, at_import: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            add([alias.name for alias in node.names], node, at_import, for_types)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            ours = source.split(".")[0] == "cosmos_distill"
            add([n if ours and exists(n) else source for n in names], node, at_import, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, at_import, True)
            for child in node.orelse:
                visit(child, at_import, for_types)
        else:
            within = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, within, for_types)

    visit(ast.parse(path.read_text(encoding="utf-8")), True, False)
    return found


def ours(path: Path) -> Iterator[tuple[Import, list[str]]]:
    """Imports of the package's own modules, with the parts of their dotted name after the package's."""
    for one in imports(path):
        parts = one.module.split(".")
        if parts[0] == "cosmos_distill":
            yield one, parts[1:]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def where(path: Path, one: Import) -> str:
    return f"{path.relative_to(ROOT)}:{one.line} imports {one.module}"


def test_the_parts_exist():
    assert len(SOURCES) > 10 and (PACKAGE / "config" / "__init__.py").is_file()


def test_arrows():
    wrong = []
    for path in SOURCES:
        mine = part(path)
        if mine not in ARROWS:
            continue
        allowed = ARROWS[mine]
        for one, to in ours(path):
            if not to or to[0] == mine or to[0] == "_C":
                continue
            if not any(".".join(to[:depth]) in allowed for depth in (1, 2, 3)):
                wrong.append(where(path, one))
    assert not wrong, "\n".join(wrong)


def test_methods_see_networks_only_through_their_interface():
    """A method is handed its networks; it may name types of models/, never import one to run it."""
    wrong = [
        where(path, one)
        for path in SOURCES
        if part(path) == "methods"
        for one, to in ours(path)
        if to[:1] == ["models"] and not one.for_types and to[:3] != ["models", "common", "heads"]
    ]
    assert not wrong, "\n".join(wrong)


def test_recipes_import_only_config_and_methods():
    wrong = []
    for path in RECIPES:
        for one in imports(path):
            top, *rest = one.module.split(".")
            if top in sys.stdlib_module_names or (
                top == "cosmos_distill" and rest[0] in ("config", "methods")
            ):
                continue
            wrong.append(where(path, one))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path",
    [*sorted((PACKAGE / "config").glob("*.py")), PACKAGE / "families.py", PACKAGE / "ranges.py"],
    ids=str,
)
def test_config_knows_the_standard_library_only(path: Path):
    for one in imports(path):
        ours = one.module in {"cosmos_distill.ranges", "cosmos_distill.families"} or one.for_types
        ours = ours or one.module.startswith("cosmos_distill.config.")
        assert ours or one.module.split(".")[0] in sys.stdlib_module_names, one


def test_every_heavy_dependency_has_its_owners():
    wrong = []
    for path in SOURCES:
        for one in imports(path):
            owners = OWNERS.get(one.module.split(".")[0])
            folder = ".".join(path.relative_to(PACKAGE).parts[:2])
            if owners is not None and not owners & {part(path), folder}:
                wrong.append(where(path, one))
    assert not wrong, "\n".join(wrong)


def light_files() -> list[Path]:
    named = [PACKAGE / f"{name}.py" for name in LIGHT if (PACKAGE / f"{name}.py").is_file()]
    declared = [
        p for p in SOURCES if part(p) == "models" and p.name in ("config.py", "names.py", "__init__.py")
    ]
    return [*named, *declared, *(p for p in SOURCES if part(p) == "methods")]


def chain_to_torch(path: Path, seen: set[Path]) -> list[str] | None:
    """The imports that lead from a file to a heavy package when it is imported, if any do."""
    seen.add(path)
    for one in imports(path):
        if not one.at_import:
            continue
        if one.module.split(".")[0] in HEAVY:
            return [where(path, one)]
        if one.module.split(".")[0] != "cosmos_distill":
            continue
        # Importing a.b.c runs a, a.b and a.b.c.
        parts = one.module.split(".")
        for depth in range(1, len(parts) + 1):
            base = PACKAGE.parent.joinpath(*parts[:depth])
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            if file.is_file() and file not in seen:
                rest = chain_to_torch(file, seen)
                if rest is not None:
                    return [where(path, one), *rest]
    return None


@pytest.mark.parametrize("path", light_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_modules_import_no_torch(path: Path):
    chain = chain_to_torch(path, set())
    assert chain is None, "\n".join(chain or [])


def test_command_line_and_recipes_really_import_no_torch():
    code = "import sys, importlib.util as u, cosmos_distill.cli\n"
    for i, path in enumerate(RECIPES):
        code += f"s = u.spec_from_file_location('r{i}', {str(path)!r}); m = u.module_from_spec(s)\n"
        code += f"sys.modules['r{i}'] = m; s.loader.exec_module(m); m.recipe()\n"
    code += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_parts_form_no_cycle():
    edges: dict[str, set[str]] = {}
    for path in SOURCES:
        for one, to in ours(path):
            if to and to[0] != part(path) and not one.for_types:
                leaf = ".".join(to[:2])
                target = leaf if leaf in LEAVES else to[0]
                edges.setdefault(part(path), set()).add(target)

    def walk(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join([*trail, node])
        for other in edges.get(node, ()):
            walk(other, (*trail, node))

    for node in edges:
        walk(node, ())


@pytest.mark.parametrize("leaf", LEAVES)
def test_vocabularies_know_no_other_part(leaf: str):
    path = PACKAGE.joinpath(*leaf.split(".")).with_suffix(".py")
    wrong = [
        where(path, one)
        for one, to in ours(path)
        if to[:1] not in (["config"], ["data"], ["errors"], ["to_device"])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_test_imports_from_a_test():
    """What several share is in a conftest or a module of helpers, which nothing collects a second time."""
    wrong = {
        where(path, one)
        for path in (ROOT / "tests").rglob("*.py")
        for one in imports(path)
        if re.search(r"(^|\.)test_\w+$", one.module)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_benchmarks_import_no_test():
    """Tests import them."""
    wrong = {
        where(path, one)
        for path in (ROOT / "benchmarks").rglob("*.py")
        for one in imports(path)
        if one.module.split(".")[0] == "tests"
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_files_stay_short():
    files = [
        path
        for folder in ("python", "csrc", "recipes", "benchmarks", "tests")
        for suffix in ("py", "pyi", "h", "cpp", "cu")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if (count := path.read_text(encoding="utf-8").count("\n")) > LONGEST
    }
    assert not long, f"more than {LONGEST} lines: {long}"


def test_only_the_bindings_know_pybind11_and_nothing_compiled_knows_torch():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        included = re.findall(r'#\s*include\s*[<"]([^">]+)', path.read_text(encoding="utf-8"))
        assert not [i for i in included if i.startswith(("torch/", "ATen/", "c10/"))], path
        if path not in (ROOT / "csrc" / "bindings.cpp", ROOT / "csrc" / "bindings.h"):
            assert not [i for i in included if i.startswith("pybind11") or i == "Python.h"], path


def test_facts_about_clips_hold_for_all_the_code_that_finds_them() -> None:
    """What reads clips and their companions (:mod:`cosmos_distill.data.index`), and all that it imports, from
    whatever folder. What a recipe says is no part of a fact."""

    def source(name: str) -> Path:
        path = PACKAGE.parent.joinpath(*name.split("."))
        return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"

    found: set[Path] = set()
    todo = [PACKAGE / "data" / f"{name}.py" for name in ("video", "clip_stats", "companion_checks")]
    while todo:
        if (path := todo.pop()) not in found:
            found.add(path)
            names = [one.module for one in imports(path) if not one.for_types]
            todo += [source(name) for name in names if name.startswith("cosmos_distill")]
    assert PACKAGE / "arrays" / "companions.py" in found
    of_recipes = {
        PACKAGE / f"{name}.py" for name in ("errors", "families", "randomness", "ranges", "to_device")
    }
    of_recipes |= set((PACKAGE / "config").glob("*.py"))
    assert found - of_recipes <= set(reading())
