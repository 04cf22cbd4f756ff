"""Pages for people: one HTML file each that needs no other; templates extend ``frame.html.jinja``.

Everything that a template is given is escaped, and the page's own header forbids a browser to run or fetch
anything else than what the frame names: what a file's name or a caption holds stays text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def render(template: Path, *, script: str = "", **values: Any) -> str:
    """The page of a template with ``values``.

    Args:
        script: JavaScript that the page runs, and the only one that a browser runs in it.
    """
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined

    loader = ChoiceLoader([FileSystemLoader(folder) for folder in (template.parent, Path(__file__).parent)])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template.name).render(
        script=script, script_source=f"'sha256-{allowed}'" if script else "'none'", **values
    )


def number(value: float | None) -> str:
    """Four digits of a number; a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def seconds(value: float) -> str:
    """A length of time in its natural unit."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def data_url(content: bytes, kind: str) -> str:
    """A file's content as the address of a picture: ``kind`` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def histogram(values: Sequence[float], bins: int, low: float, high: float) -> list[int]:
    """How many of ``values`` lie in each of so many equal parts from ``low`` to ``high``; those outside count
    in the first and last."""
    counts = [0] * bins
    width = (high - low) / bins or 1.0
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / width)))] += 1
    return counts
