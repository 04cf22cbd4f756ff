"""Metrics, one per file, found by the file's name: each file has a ``METRIC``.

To add one, add a file: nothing else lists them. Torch-free until one is found.
"""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos_distill.eval.metric import Metric


def names() -> tuple[str, ...]:
    """Of all metrics, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no metric is called {name!r}: {meant}there are {', '.join(names())}")
    metric: Metric = importlib.import_module(f"{__name__}.{name}").METRIC
    return metric
