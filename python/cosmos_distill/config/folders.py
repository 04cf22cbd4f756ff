"""What is found by the name of its file: a control, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules


def modules(folder: str) -> tuple[str, ...]:
    """Names of the modules that lie right in a folder of the package, in alphabetical order."""
    found = iter_modules([str(Path(__file__).parents[1] / folder)])
    return tuple(sorted(module.name for module in found if not module.ispkg))
