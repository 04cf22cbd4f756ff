"""Docstrings as Markdown reads them, for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(r"^(={3,}(?: +={3,})+)\n.*?\n\1$", re.DOTALL | re.MULTILINE)


class Tables(griffe.Extension):
    """Tables that are drawn with equals signs, as they stand: Markdown would take them for headings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = _TABLE.sub(lambda t: f"```text\n{t[0]}\n```", obj.docstring.value)
