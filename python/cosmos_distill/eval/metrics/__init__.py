"""Metrics, one per file, found by the file's name: each file has a ``METRIC``.

To add one, add a file: nothing else lists them. Torch-free until one is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmos_distill.config import folders

if TYPE_CHECKING:
    from cosmos_distill.eval.metric import Metric


def names() -> tuple[str, ...]:
    """Of all metrics, in alphabetical order."""
    return folders.modules(*__path__)


def find(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: there is none.
    """
    metric: Metric = folders.find("metric", name, names(), __name__).METRIC
    return metric
