"""The tables of docs/robustness.md, from the records beside this file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness import inputs, kills

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "robustness.md"
TABLES: dict[str, Callable[[Any], str]] = {"kills": kills.table, "inputs": inputs.table}
"""Name of the record, and of its place on the page -> how it is shown."""


def page(text: str) -> str:
    """``text`` with the tables of the records that there are in their places."""
    for name, table in TABLES.items():
        path = HERE / f"{name}.json"
        if path.exists():
            shown = table(json.loads(path.read_text()))
            place = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
            text = re.sub(place, lambda found: f"{found[1]}{shown}\n{found[2]}", text, flags=re.S)  # noqa: B023
    return text
