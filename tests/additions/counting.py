"""What adding something costs: files that real additions touch, counted.

Each folder here is one kind of addition. It holds a real example: files that may lie anywhere, or that lie
under ``python/``, ``csrc/`` or another folder of the repository, to be laid over a copy of it; and
``check.py``, which is run on that copy and uses what was added. What has to change in files that there
are is in ``changes.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "architecture.md"
CHECK = "check.py"
CHANGES = "changes.json"
"""What an addition changes in files that there are: [{path, old, new}]."""


@dataclass(frozen=True)
class Kind:
    """One kind of addition."""

    name: str
    """Of its folder."""
    title: str
    goal: str
    """What the design asks for."""


KINDS = (
    Kind("method", "a method", "1 file, also from outside of the package"),
    Kind("recipe", "a recipe", "1 file, anywhere"),
    Kind("metric", "a metric", "1 file, named in a recipe"),
    Kind("control", "a control", "1 file, named in a recipe"),
    Kind("tokenizer", "a tokenizer", "1 file, named in a recipe"),
    Kind("text_encoder", "a text encoder", "1 file"),
    Kind("adapter", "a transformer of diffusers", "1 file, from outside of the package"),
    Kind("family", "a family of networks", "its folder"),
    Kind("operator", "an operator", "its folder, its source in csrc/, its name"),
)


def files(kind: str) -> list[str]:
    """Paths of an addition's files, relative to the repository where they lie in it."""
    folder = HERE / kind
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(folder).as_posix() for path in found if path.name not in (CHECK, CHANGES)]


def changes(kind: str) -> list[dict[str, str]]:
    """What an addition changes in files of the repository."""
    path = HERE / kind / CHANGES
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def table() -> str:
    """What docs/architecture.md shows."""
    lines = ["| adding | files | of these changed | goal | example |", "|---|---|---|---|---|"]
    for kind in KINDS:
        old = {change["path"] for change in changes(kind.name)}
        count = len(files(kind.name)) + len(old)
        example = ", ".join(
            f"[`{path.rsplit('/', 1)[-1]}`](../tests/additions/{kind.name}/{path})"
            for path in files(kind.name)
        )
        lines.append(f"| {kind.title} | {count} | {len(old)} | {kind.goal} | {example} |")
    return "\n".join(lines)


def renewed(page: str) -> str:
    """The page with the table as it is counted now."""
    block = f"<!-- additions -->\n{table()}\n<!-- /additions -->"
    text, count = re.subn("<!-- additions -->.*?<!-- /additions -->", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"there must be one place for the table, not {count}")
    return text


def scratch(kind: str, folder: Path) -> Path:
    """A copy of the package, in ``folder``, with an addition laid over it."""
    copy = folder / "python" / "cosmos_distill"
    source = ROOT / "python" / "cosmos_distill"
    shutil.copytree(source, copy, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
    for path in files(kind):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / kind / path, target)
    for change in changes(kind):
        target = folder / change["path"]
        text = target.read_text(encoding="utf-8")
        if text.count(change["old"]) != 1:
            raise ValueError(f"{change['path']} has {change['old']!r} {text.count(change['old'])} times")
        target.unlink()
        target.write_text(text.replace(change["old"], change["new"]), encoding="utf-8")
    shutil.copy(HERE / kind / CHECK, folder / CHECK)
    return folder


def check(kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Make the addition in a copy, and run its check there."""
    scratch(kind, folder)
    # Without site: an editable installation would put the package that it was made of before the copy.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder / "python"), *packages]),
        "OMP_NUM_THREADS": "1",
        "ADDITIONS_ROOT": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-S", CHECK],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
