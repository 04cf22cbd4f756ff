"""What a setting may be: said in its type, and checked when the configuration that holds it is made.

    steps: Annotated[int, Range(1, 1000)] = 35

is refused outside of its range, and where it is no integer. A field's metadata says what it changes
(:func:`effect`). Knows the standard library only.
"""

from __future__ import annotations

import math
import re
import types
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Problem = tuple[str, str]
"""A field, dotted where it is one of a part, and what is wrong with it: together they are a sentence."""
Effect = Literal["result", "length", "place", "none"]
"""What a field changes. ``result`` (the default of every field): what is computed. ``length``: how long a
stage goes on, which changes its steps only where a schedule stretches with it. ``place``: where a file lies,
whose content is compared instead. ``none``: how often something is written or shown, and how work is cut and
spread."""
_LONGEST_SHOWN = 60
_NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    bool: "True or False",
    str: "a str",
    Path: "a pathlib.Path",
    types.NoneType: "None",
}


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; ``above`` and ``below`` leave out the ends themselves."""

    low: float
    high: float
    above: bool = False
    below: bool = False
    note: str = ""
    """What a number of special meaning in it does."""

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.above or self.below:
            begin, end = "above" if self.above else "at least", "below" if self.below else "at most"
            text = f"{begin} {low} and {end} {high}"
        else:
            text = f"from {low} to {high}"
        return f"{text} ({self.note})" if self.note else text


class Checked:
    """Base of a configuration: a dataclass whose fields are checked against their types when it is made."""

    def rules(self) -> Iterator[Problem]:
        """What several fields have to fulfil together; asked when each of them is right by itself."""
        return iter(())

    def __post_init__(self) -> None:
        """Check everything.

        Raises:
            ValueError: naming the first field that is wrong, and what it may be.
        """
        if not _unchecked.get() and (problem := next(problems(self), None)) is not None:
            raise ValueError(" ".join(problem))


_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


def effect(kind: Effect, where: tuple[str, tuple[str, ...]] | None = None) -> dict[str, Any]:
    """Metadata of a field that says what it changes; with ``where``, only if that field has one of these
    values."""
    return {"effect": kind, "where": where}


def effects(config: type, values: Mapping[str, Any]) -> dict[str, Effect]:
    """What each field of a configuration changes: the one list that manifests and resumed runs read.

    Args:
        config: Its class.
        values: Of its fields, as attributes or out of JSON.
    """
    found: dict[str, Effect] = {}
    for item in fields(config):
        where = item.metadata.get("where")
        holds = where is None or values.get(where[0]) in where[1]
        found[item.name] = item.metadata.get("effect", "result") if holds else "result"
    return found


def places(config: type) -> dict[str, Any]:
    """The fields of a configuration that say where a file lies, whatever the others are, and what each is
    where none is named."""
    return {
        item.name: item.default
        for item in fields(config)
        if item.metadata.get("effect") == "place" and item.metadata.get("where") is None
    }


def file_names(field: str, what: str, names: Iterable[str]) -> Iterator[Problem]:
    """What is wrong with names of files, which must neither leave their folder nor meet there, whatever the
    file system."""
    known: dict[str, str] = {}
    for name in names:
        if re.fullmatch(r"\w[\w-]{0,63}", name) is None:
            yield field, f"{name!r} cannot be the name of a {what}: take letters, digits, _ and -, at most 64"
        other = known.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            yield field, f"{name!r} and {other!r} cannot both be the name of a {what}: rename one"


@contextmanager
def unchecked() -> Iterator[None]:
    """Let configurations be made without a check, for :func:`problems` of the whole, which knows where in it
    a field stands."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def problems(config: Any) -> Iterator[Problem]:
    """All that is wrong in a configuration and in its parts."""
    right = True
    kind: Any = type(config)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints(kind)[field.name]
        if not fits(value, hint):
            right = False
            yield field.name, f"must be {expected(hint)}, not {shown(value)}"
            continue
        for name, part in _parts(field.name, value):
            for inner, text in problems(part):
                right = False
                yield f"{name}.{inner}", text
    if right:
        yield from config.rules()


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Checked):
        yield name, value
    elif isinstance(value, Mapping):
        yield from ((f"{name}.{key}", part) for key, part in value.items() if isinstance(part, Checked))


@cache
def hints(config: Any) -> dict[str, Any]:
    """Type of every field of the dataclass ``config``, with its range."""
    return get_type_hints(config, include_extras=True)


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is one of the type ``hint`` and inside of its range. No bool is a number, no number
    but a finite one a float; a list will do as a tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0]) and all(value in r for r in args[1:] if isinstance(r, Range))
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        wanted = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, args[0]) and fits(item, args[1]) for key, item in value.items()
        )
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and (isinstance(value, int) or math.isfinite(value))
    if origin is Sequence and isinstance(value, str):
        return False
    return isinstance(value, origin or hint)


def expected(hint: Any) -> str:
    """What :func:`fits` asks for, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([expected(args[0]), *(str(r) for r in args[1:] if isinstance(r, Range))])
    if origin in (Union, types.UnionType):
        return " or ".join(map(expected, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        count = "any number of" if args[-1] is Ellipsis else str(len(args))
        return f"a tuple of {count} values, each {expected(args[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of {expected(args[0])} to {expected(args[1])}"
    return _NAMES.get(hint) or f"of type {getattr(hint, '__name__', hint)}"


def shown(value: Any) -> str:
    """``value`` for an error message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
