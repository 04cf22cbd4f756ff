"""Pages of the documentation as programs: their Python blocks are run, one after the other.

A page tells one story, so its blocks share their names, as if they were typed in. A block that cannot be run
in a test has the reason in a comment on the line before it, which no reader of the built page sees:

    <!-- not run: needs the weights of a 7B teacher -->
    ```python
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = re.compile(r"<!-- not run: \S[^\n]* -->\s*\Z")


_BLOCK = re.compile(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_OURS = re.compile(r"(?:^|/|-m )cosmos[-_]distill (?P<words>.+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block of Python."""

    line: int
    """Of the page, from 1, where its code begins."""
    code: str
    run: bool


def blocks(page: Path) -> Iterator[Block]:
    """The page's blocks of Python, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        lines = found["code"].splitlines(keepends=True)
        code = "".join(line[len(found["indent"]) :] if line.strip() else line for line in lines)
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(line, code, _NOT_RUN.search(text[: found.start()]) is None)


def commands(text: str) -> list[list[str]]:
    """Words of every command of ours in the shell blocks of a page, without comments."""
    found = []
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if (ours := _OURS.search(line.strip())) and "..." not in line:
                found.append(shlex.split(ours["words"], comments=True))
    return found


def pages() -> list[Path]:
    """All pages with a block that is run."""
    return [page for page in sorted((ROOT / "docs").rglob("*.md")) if any(b.run for b in blocks(page))]


def run(page: Path) -> ModuleType:
    """Run the page in the current folder; what it has defined is in the module returned.

    An error's traceback names the page and the line in it.
    """
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # classes of it may be pickled and looked up
    try:
        for block in blocks(page):
            if block.run:
                program = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
                exec(program, vars(module))
    finally:
        del sys.modules[module.__name__]
    return module
