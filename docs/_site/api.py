"""Pages of the reference that mkdocstrings fills from docstrings: one for each part of the package."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "cosmos_distill"
FOLDER = "reference/api"
KERNELS = ("cpu", "cuda", "triton", "aot", "launch", "partials")
"""Beginnings of names of modules in ops/ that hold one backend's kernels: nobody calls them."""


@cache
def parts() -> dict[str, list[str]]:
    """Part -> its public modules as dotted names, the part itself first."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        names = names[:-1] if names[-1] == "__init__" else names
        if not names or any(name.startswith("_") for name in names):
            continue
        if names[0] == "ops" and names[-1].startswith(KERNELS):
            continue
        if not any(_says_something(p) for p in (path, path.with_suffix(".pyi")) if p.is_file()):
            continue
        found.setdefault(names[0], []).append(".".join(["cosmos_distill", *names]))
    return {part: sorted(modules, key=lambda m: (m.count("."), m)) for part, modules in found.items()}


def place(path: Path) -> str | None:
    """Where the reference has a file of the package, as a page with an anchor; None: nowhere."""
    if not path.is_relative_to(PACKAGE) or path.suffix not in (".py", ".pyi"):
        return None
    names = path.relative_to(PACKAGE).with_suffix("").parts
    names = names[:-1] if names[-1] == "__init__" else names
    if not names:
        return f"{FOLDER}/library.md"
    module = ".".join(["cosmos_distill", *names])
    return f"{FOLDER}/{names[0]}.md#{module}" if module in parts().get(names[0], ()) else None


def _says_something(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    return bool(public or ast.get_docstring(tree))


def summary(part: str) -> str:
    """The first sentence of a part's docstring."""
    folder = PACKAGE / part
    homes = (
        [folder / "__init__.py", folder / "__init__.pyi"] if folder.is_dir() else [folder.with_suffix(".py")]
    )
    texts = [ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) for p in homes if p.is_file()]
    text = next(filter(None, texts), None)
    first = (text or "").split("\n\n")[0].replace("\n", " ")
    return first.split(". ")[0].rstrip(".:") if first else ""


def page(part: str, modules: list[str]) -> str:
    """The Markdown of a part's page."""
    return "\n".join([f"# {part}", "", *(f"::: {module}\n" for module in modules)])


def library() -> str:
    """The Markdown of the page of what the package itself offers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    offered = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return f"# cosmos_distill\n\n::: cosmos_distill\n    options:\n      members: [{', '.join(offered)}]\n"


def recipes() -> str:
    """The Markdown of all recipes of the repository."""
    files = sorted((PACKAGE.parents[1] / "recipes").glob("*.py"))
    options = "    options:\n      members: [recipe]\n      show_root_full_path: false"
    return "\n\n".join(f"::: {path.stem}\n{options}" for path in files)
