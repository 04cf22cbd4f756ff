"""Every refusal of the package, read off its sources: the list of docs/howto/troubleshooting.md.

A refusal is an exception that ends the command with status 2 (:data:`KINDS`), a sentence or a problem that
a check yields, or a ValueError, which is what readers of files and checks of arguments raise: whoever calls
them says whose file it was. The page says between ``<!-- refusals: PART ... -->`` where those of a part go,
and with ``*`` where all that are left go, so that none can be forgotten.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "cosmos_distill"


def _mended_by_the_user() -> set[str]:
    """Names of the classes based on :class:`cosmos_distill.errors.UserError`, which end with status 2."""
    return {
        node.name
        for path in PACKAGE.rglob("*.py")
        if "UserError" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "UserError" for base in node.bases)
    }


KINDS = {*_mended_by_the_user(), "DiskError", "ValueError"}
"""Exceptions whose text says what to do. A full disk has status 1: nothing has to change but the disk."""
CHECKS = ("Iterator[Problem]", "Iterator[str]")
"""What a generator of problems is declared to return."""
CALLED = {"ops", "diffusion"}
"""Parts that a program calls and no command does: their errors are in the reference."""
MARKER = re.compile(r"<!-- refusals: ([\w *]+) -->")


@dataclass(frozen=True)
class Said:
    """One refusal."""

    part: str
    """File or folder right under the package."""
    module: str
    line: int
    text: str
    """As it is printed; what depends on the case is a word between ‹ ›."""


def collect(package: Path = PACKAGE) -> list[Said]:
    """All refusals, in the order of the sources."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).with_suffix("")
        if inside.parts[0] in CALLED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for line, text in _refusals(node):
                if re.search(r"[a-z]{2,} .*[a-z]{2,}", re.sub("‹.*?›", "", text)):
                    found.append(Said(inside.parts[0], ".".join(inside.parts), line, text))
    return found


def _refusals(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call) and node.args and _name(node.func) in KINDS:
        for text in _texts(node.args[0]):
            yield node.lineno, text
    if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).endswith(CHECKS):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Yield) and inner.value is not None:
                pair = inner.value.elts if isinstance(inner.value, ast.Tuple) else [inner.value]
                *field, problem = map(_texts, pair)
                option = "".join(texts[0] for texts in field)
                yield from ((inner.lineno, f"{option} {text}".strip()) for text in problem)


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _texts(node: ast.expr) -> list[str]:
    """What an expression may be as a text, one for each branch."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            tails = _texts(part.value) if isinstance(part, ast.FormattedValue) else _texts(part)
            found = [head + tail for head in found for tail in tails]
        return found
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _texts(node.left) for b in _texts(node.right)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return [*_texts(node.left), ""]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    return [f"‹{_spoken(node)}›"]


def _spoken(node: ast.expr) -> str:
    """A word for a value that is known only when it happens."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        node = node.func.value
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Name) and len(node.id) > 1:
        return node.id.strip("_")
    return "…"


def _item(said: Said) -> str:
    text = re.sub(r"([*_`|\[\]\\])", r"\\\1", html.escape(said.text, quote=False))
    text = re.sub("‹(.*?)›", lambda word: f"<em>{word[1].replace(chr(92), '')}</em>", text).replace("\n", " ")
    return f"- {text} <small>{said.module}</small>"


def fill(text: str, found: list[Said] | None = None) -> str:
    """The page with the refusals of each part in their place.

    Raises:
        ValueError: a marker names a part that refuses nothing, or one that another has.
    """
    found = collect() if found is None else found
    left = {said.part for said in found}
    named = [part for marker in MARKER.findall(text) for part in marker.split() if part != "*"]
    if twice := {part for part in named if named.count(part) > 1}:
        raise ValueError(f"parts named twice: {sorted(twice)}")
    if unknown := set(named) - left:
        raise ValueError(f"parts that refuse nothing: {sorted(unknown)}")

    def one(marker: re.Match[str]) -> str:
        parts = set(marker[1].split())
        if "*" in parts:
            parts = left - set(named)
        items = dict.fromkeys(_item(said) for said in found if said.part in parts)
        shown = "\n".join(items) or "None."
        summary = f"<summary>{len(items)} messages</summary>"
        return f'<details open markdown class="refusals">{summary}\n\n{shown}\n\n</details>'

    return MARKER.sub(one, text)
