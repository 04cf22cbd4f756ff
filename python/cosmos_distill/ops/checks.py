"""What every operator asks of its tensors before a kernel may read their memory.

Small networks call thousands of operators a second: what is right is found out in as few looks as possible,
what is wrong is explained at leisure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""What operators are computed in, or from."""
_NUMBERS = (Real, torch.SymFloat, torch.SymInt)
"""With those of a tracer, which may be numbers to come."""


def floating(name: str, x: Tensor) -> None:
    """x holds real floating-point numbers of 16 to 64 bits in dense memory.

    Raises:
        ValueError: it does not; the message names the argument.
    """
    if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.layout is not torch.strided or x.is_nested:
        raise ValueError(f"{name} must be {_wanted(x)}")


def like(name: str, x: Tensor, shape: Sequence[int], of: str, origin: Tensor) -> None:
    """x is :func:`floating`, of this shape, and on the device of ``origin``, the argument called ``of``.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    floating(name, x)
    if x.shape != shape:
        raise ValueError(
            f"{name} must be {list(shape)} for {of} of shape {list(origin.shape)}, not {list(x.shape)}"
        )
    beside(name, x, of, origin)


def beside(name: str, x: Tensor, of: str, origin: Tensor) -> None:
    """x is on the device of ``origin``, the argument called ``of``.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    if x.device != origin.device:
        raise ValueError(f"{name} is on {x.device} but {of} is on {origin.device}")


def typed(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """x is of this dtype.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    if x.dtype != dtype:
        raise ValueError(f"{name} must be a tensor of {dtype}, not of {x.dtype}")


def number(name: str, value: float, least: float | None = None) -> None:
    """A finite real number, no less than ``least``.

    Raises:
        ValueError: it is something else; the message names the argument.
    """
    kind = type(value)
    if not (kind is float or kind is int or (isinstance(value, _NUMBERS) and kind is not bool)):
        raise ValueError(f"{name} must be a number, not {_shown(value)}")
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, not {value}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, not {value}")


def flag(name: str, value: bool) -> None:
    """True or False: what is merely true, ``"no"`` for one, may mean the other.

    Raises:
        ValueError: it is something else; the message names the argument.
    """
    if value is not True and value is not False:
        raise ValueError(f"{name} must be True or False, not {_shown(value)}")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """One of these words.

    Raises:
        ValueError: it is something else; the message names the argument.
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1]))
        raise ValueError(f"{name} must be {listed} or {choices[-1]!r}, not {_shown(value)}")


def _shown(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:100]


def _wanted(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a tensor, not {type(x).__name__}"
    if not x.is_floating_point():
        return f"a floating-point tensor, not {x.dtype}"
    if x.dtype not in DTYPES:
        return f"fp64, fp32, bf16 or fp16, not {x.dtype}: convert it, as by .to(torch.bfloat16)"
    return f"a dense tensor, not {'nested' if x.is_nested else x.layout}: pass its padded or dense form"
