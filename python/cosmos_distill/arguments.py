"""Arguments of the library's functions are checked against their annotations before any work: what is of
another type is refused by name, as the numbers of a recipe are (:mod:`cosmos_distill.ranges`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from numbers import Integral
from typing import Any, ParamSpec, TypeVar, get_origin, get_type_hints

from cosmos_distill.errors import Refusal
from cosmos_distill.ranges import expected, fits, shown

Given = ParamSpec("Given")
Result = TypeVar("Result")
_SMALL = (str, int, float, complex, bytes, tuple, type(None))
"""Values that say what they are when they are written out."""


def checked(**advice: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Have a function refuse arguments that are not of their annotated types and ranges.

    Args:
        advice: what to give instead, by argument, where the type does not say it.

    Returns:
        A decorator. What it returns raises Refusal before the function is called; ValueError where it is a
        class's ``__init__``, as configurations do.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)
        wrong: type[Exception] = ValueError if function.__name__ == "__init__" else Refusal
        if unknown := advice.keys() - signature.parameters.keys():
            raise TypeError(f"{function.__qualname__} has no argument {min(unknown)!r}")

        @cache
        def hints() -> dict[str, Any]:
            return get_type_hints(function, include_extras=True)

        @wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                hint = _outside(hints().get(name, Any))
                if isinstance(value, Integral) and not isinstance(value, bool):  # numpy's, for one
                    bound.arguments[name] = value = int(value)
                if not fits(value, hint):
                    wanted = advice.get(name) or f"must be {expected(hint)}"
                    said = shown(value) if isinstance(value, _SMALL) else f"a {type(value).__name__}"
                    raise wrong(f"{name}: {wanted}, not {said}")
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def _outside(hint: Any) -> Any:
    """A mapping's type without that of its contents, of which its reader says more."""
    origin = get_origin(hint)
    return origin if isinstance(origin, type) and issubclass(origin, Mapping) else hint


def path(name: str, text: Any) -> None:
    """Raises Refusal for an empty path, which would be the folder that the program was started in."""
    if not str(text).strip():
        raise Refusal(f"{name}: an empty path: name a folder or file, or '.' for where the program runs")
