"""What is found by the name of its file: a control, a metric, a tokenizer."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType


def modules(*folders: str) -> tuple[str, ...]:
    """Names of the modules that lie right in these folders, in alphabetical order: relative ones are the
    package's."""
    found = iter_modules([str(Path(__file__).parents[1] / folder) for folder in folders])
    return tuple(sorted(module.name for module in found if not module.ispkg))


def options(folder: str) -> tuple[str, ...]:
    """The same names as options are written: ``_`` is the hyphen or, between digits, the point that a
    module's name cannot have."""
    dotted = (re.sub(r"(?<=\d)_(?=\d)", ".", name) for name in modules(folder))
    return tuple(sorted(name.replace("_", "-") for name in dotted))


def find(what: str, name: str, known: Sequence[str], package: str) -> ModuleType:
    """The module of that name.

    Args:
        what: Of which kind it is, e.g. ``metric``.
        name: One of ``known``.
        known: All that there are.
        package: Where their files lie, dotted.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    if name not in known:
        raise ValueError(unknown(what, name, known))
    return importlib.import_module(f"{package}.{re.sub('[-.]', '_', name)}")


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """What is said of a name that nothing has."""
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"no {what} is called {name!r}: {meant}there are {', '.join(known)}"
