"""Scores that do not exist, and why: a ratio to nothing, the spread of a single clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NoScore(ValueError):
    """What was asked for is not defined for these clips; the message is the reason, for a person."""


def attempt(work: Callable[[], T], reasons: dict[str, str], name: str) -> T | None:
    """What ``work`` returns, or None where there is no such score; ``reasons[name]`` then says why."""
    try:
        return work()
    except NoScore as error:
        reasons[name] = str(error)
        return None


def ratio(above: float | None, below: float | None, reasons: dict[str, str], name: str) -> float | None:
    """``above / below``, or None with a reason where one of them is missing or ``below`` is 0."""

    def divide() -> float:
        if above is None or below is None:
            raise NoScore("one of the two does not exist")
        if not below:
            raise NoScore("it would be a ratio to 0")
        return above / below

    return attempt(divide, reasons, name)


def shown(value: float | None, form: str = ".3g") -> str:
    """A number for a person, a dash where there is none."""
    return "\N{EM DASH}" if value is None else format(value, form)


def known(value: Any) -> Any:
    """``value`` of mappings, lists and scalars as read from a file, with None for words in the place of
    numbers that earlier versions wrote (``NaN``, ``Infinity``)."""
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
