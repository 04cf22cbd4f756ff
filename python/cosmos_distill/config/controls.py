"""How the controls of a recipe are written: ``edge``, or several with weights, ``edge:0.5,vis:0.5``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cosmos_distill.config.folders import modules, unknown

CONTROLS = modules("controls")
"""Names of all controls: one file each, see :mod:`cosmos_distill.controls`."""
_MOST = 1e6


def weights_of(control: str | None) -> dict[str, float]:
    """Controls with their weights, in the order in which they are written; none of None, in any spelling.

    A weight that is left out is 1. A control of weight 0 has a branch in the network and is not used.

    Raises:
        ValueError: what is written is none of them, with what is wrong.
    """
    found: dict[str, float] = {}
    nothing = control is None or control.strip().lower() in ("none", "null")
    for part in [] if nothing or control is None else control.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in CONTROLS:
            raise ValueError(unknown("control", name, CONTROLS))
        if name in found:
            raise ValueError(f"names {name} twice")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= _MOST:
            raise ValueError(f"the weight of {name} must be a number from 0 to {_MOST:g}, not {number!r}")
        found[name] = weight
    if found and not any(found.values()):
        raise ValueError("gives every control the weight 0: give one of them another")
    return found


def spelled(weights: Mapping[str, float]) -> str | None:
    """Controls with their weights as :func:`weights_of` reads them, each set of them in one way: one alone of
    weight 1 is its name, and none is None."""
    if not weights:
        return None
    if len(weights) == 1 and 1.0 in weights.values():
        return next(iter(weights))
    return ",".join(f"{name}:{shortest(weight)}" for name, weight in weights.items())


def shortest(value: float) -> str:
    """A number as options have it: as short as it can be without being another one."""
    return f"{value:g}" if "e" not in f"{value:g}" and float(f"{value:g}") == value else repr(value)
