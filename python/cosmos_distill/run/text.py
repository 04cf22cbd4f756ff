"""Configuration as text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def yaml(value: Any, indent: int = 0) -> str:
    """What :func:`~cosmos_distill.run.manifest.plain` gives, as YAML (scalars in JSON's spelling, which is
    YAML's too). A part of which nothing is set is ``{}``."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and any(part is not None for part in item.values()):
            lines.append(f"{' ' * indent}{key}:\n{yaml(item, indent + 2)}")
        else:
            lines.append(f"{' ' * indent}{key}: {'{}' if isinstance(item, Mapping) else _scalar(item)}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    plain_word = isinstance(value, str) and value.replace("-", "").replace("_", "").isalpha()
    return (
        str(value)
        if plain_word and value not in ("true", "false", "null", "yes", "no")
        else json.dumps(value)
    )
