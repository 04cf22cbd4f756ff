"""A recipe is somebody's program: what is wrong with it is said with its file and line."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cosmos_distill.config import Data, Recipe, Stage
from cosmos_distill.errors import Refusal


def load(path: Path) -> ModuleType:
    """Import a recipe file.

    Raises:
        Refusal: there is no such file, importing it fails, or it defines no ``recipe`` function.
    """
    if reason := _unreadable(path):
        known = ", ".join(sorted(str(p) for p in Path("recipes").glob("*.py"))) or "none in ./recipes"
        raise Refusal(
            f"{path} is neither a recipe file nor a command: {reason}. Recipes here: {known}. "
            "See cosmos-distill --help"
        )
    spec = importlib.util.spec_from_file_location(f"cosmos_distill_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in a recipe look themselves up here
    with blamed(path):
        spec.loader.exec_module(module)
    function = getattr(module, "recipe", None)
    whole = inspect.unwrap(function) if callable(function) else None
    if not (inspect.isfunction(whole) or inspect.ismethod(whole)):
        raise Refusal(f"{path} defines no function recipe(...) -> Recipe")
    return module


def call(path: Path, function: Callable[..., Any], arguments: dict[str, Any]) -> Recipe:
    """The Recipe that a recipe function returns.

    Raises:
        Refusal: it fails, or returns something else.
    """
    with blamed(path):
        found = function(**arguments)
    if not isinstance(found, Recipe):
        if inspect.iscoroutine(found):
            found.close()  # or Python complains that nobody awaited it
        raise Refusal(
            f"{where(path, function)}: recipe() returned {type(found).__name__}, not a Recipe: end it with "
            "`return Recipe(...)`"
        )
    if not isinstance(found.data, Data):
        raise Refusal(f"{where(path, function)}: recipe(): data is {found.data!r}, not a Data(...)")
    if not isinstance(found.stages, Mapping):
        raise Refusal(f"{where(path, function)}: recipe(): stages is {found.stages!r}, not a dictionary")
    for name, stage in found.stages.items():
        if not isinstance(name, str) or not isinstance(stage, Stage):
            raise Refusal(f"{where(path, function)}: recipe(): stages[{name!r}] is {stage!r}, not a stage")
    return found


def where(path: Path, function: Callable[..., Any]) -> str:
    """File and line of a function of a recipe; the file alone for what is no plain function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{path}:{code.co_firstlineno}" if code is not None and _is(path, code.co_filename) else str(path)


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Turn what the code of a recipe raises into a refusal that names the line of it.

    Raises:
        Refusal: from whatever was raised, but for an interrupt.
    """
    try:
        yield
    except (Refusal, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit(), and what a program defines for itself
        what = "sys.exit() was called" if isinstance(error, SystemExit) else type(error).__name__
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"{what}: {said}" if said else what
        raise Refusal(f"{_line(path, error)}: {text}") from error


def _line(path: Path, error: BaseException) -> str:
    """The last line of the recipe that was run; of a syntax error, the line that has it."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{path if _is(path, error.filename) else error.filename}:{error.lineno}"
    mine = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _is(path, f.filename)]
    return f"{path}:{mine[-1]}" if mine else str(path)


def _is(path: Path, file: str) -> bool:
    return os.path.abspath(file) == os.path.abspath(path)


def _unreadable(path: Path) -> str:
    """Why no recipe can be read from a path; empty if one can."""
    try:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {path.readlink()}, which does not exist"
        if not path.exists():
            return "there is no such file"
        if path.is_dir():
            return "it is a folder"
        if not path.is_file():
            return "it is no regular file"
        if path.suffix != ".py":
            return "its name does not end in .py"
        with path.open("rb"):
            return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
