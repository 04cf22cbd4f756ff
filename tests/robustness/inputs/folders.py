"""What ``--out`` may meet, and files of the user's that lie in the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.inputs import Input
from tests.robustness.kills import RECIPES

KEPT = "what somebody else wrote"


def out(name: str, prepare: Callable[[Path], object] = lambda path: None) -> Callable[[Path], Any]:
    """The smoke recipe in a folder that is prepared first."""

    def make(folder: Path) -> Any:
        prepare(folder / name)
        return [RECIPES["transfer1"], "--scale", "smoke", "--out", name]

    return make


def _file(name: str, content: str = KEPT) -> Callable[[Path], None]:
    def prepare(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)

    return prepare


def _other_run(path: Path) -> None:
    (path / "pretrain").mkdir(parents=True)
    (path / "pretrain" / "manifest.json").write_text(json.dumps({"stage": "pretrain", "version": "0.1.0"}))


def _newer_run(path: Path) -> None:
    (path / "generate" / "pairs").mkdir(parents=True)
    (path / "generate" / "pairs" / "pairs-00000000.safetensors").write_text(KEPT)
    (path / "generate" / "manifest.json").write_text(
        json.dumps({"stage": "generate", "version": "99.0", "new": 1})
    )


def _orphan(path: Path) -> None:
    """A stage's files without its manifest, and no recipe that says what they are from."""
    (path / "generate" / "pairs").mkdir(parents=True)
    (path / "generate" / "pairs" / "pairs.json").write_text("{}")
    (path / "run.lock").write_text("1\n")


def _tilde(folder: Path) -> Any:
    return [RECIPES["transfer1"], "--scale", "smoke", "--out", "~/runs"]


INPUTS = {
    "a file": Input(out("x", lambda p: p.write_text(KEPT)), ("--out x", "file"), quick=True),
    "below a file": Input(out("x/y", lambda p: p.parent.write_text(KEPT)), ("--out x/y", "file"), quick=True),
    "a dangling link": Input(out("x", lambda p: p.symlink_to("gone")), ("--out x", "gone"), quick=True),
    "below a dangling link": Input(
        out("x/y", lambda p: p.parent.symlink_to("gone")), ("--out x/y", "gone"), quick=True
    ),
    "a link to itself": Input(out("x", lambda p: p.symlink_to("x")), ("--out x",), quick=True),
    "an unexpanded tilde": Input(_tilde, ("--out", "~"), quick=True),
    "a device": Input(
        lambda f: [RECIPES["transfer1"], "--scale", "smoke", "--out", "/dev/null"], ("/dev/null",), quick=True
    ),
    "a system folder": Input(
        lambda f: [RECIPES["transfer1"], "--scale", "smoke", "--out", "/proc/runs"],
        ("/proc/runs",),
        quick=True,
    ),
    "a name too long": Input(out("x" * 300), ("x" * 50,), quick=True),
    "somebody's pictures": Input(out("x", _file("holiday.png")), ("--out x", "holiday.png"), quick=True),
    "somebody's report": Input(out("x", _file("report.html")), ("--out x", "report.html"), quick=True),
    "somebody's recipe": Input(
        out("x", _file("recipe.json", '{"eggs": 3}')), ("--out x", "recipe.json"), quick=True
    ),
    "somebody's folder": Input(out("x", _file("src/main.c")), ("--out x", "src"), quick=True),
    "the working directory": Input(
        lambda f: _file("mine.txt.png")(f) or [RECIPES["transfer1"], "--scale", "smoke", "--out", "."],
        ("--out .", "mine.txt.png"),
        quick=True,
    ),
    "a run of another recipe": Input(out("x", _other_run), ("--out x", "pretrain"), quick=True),
    "a run of a newer version": Input(out("x", _newer_run), ("x/generate", "99.0"), quick=True),
    "files that nothing explains": Input(out("x", _orphan), ("x/generate", "manifest.json"), quick=True),
    "a folder in the place of the lock": Input(
        out("x", lambda p: (p / "run.lock").mkdir(parents=True)), ("--out x", "run.lock"), quick=True
    ),
    "a folder in the place of the recipe": Input(
        out("x", lambda p: (p / "recipe.json").mkdir(parents=True)), ("recipe.json",), quick=True
    ),
    "a folder in the place of a manifest": Input(
        out("x", lambda p: (p / "generate" / "manifest.json").mkdir(parents=True)),
        ("manifest.json",),
        quick=True,
    ),
    "a file in the place of a stage": Input(
        out("x", lambda p: _orphan(p) or (p / "kd").write_text(KEPT)), ("x/kd",), quick=True
    ),
}
