"""What every operator asks of its tensors before a kernel may read their memory.

Small networks call thousands of operators a second: what is right is found out in as few looks as possible,
what is wrong is explained at leisure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""What operators are computed in, or from."""


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


def not_negative(name: str, value: float) -> None:
    """A number that is added under a root.

    Raises:
        ValueError: it is below 0, or no number; the message names the argument.
    """
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, not {value}")


def _wanted(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a tensor, not {type(x).__name__}"
    if not x.is_floating_point():
        return f"a floating-point tensor, not {x.dtype}"
    if x.dtype not in DTYPES:
        return f"fp64, fp32, bf16 or fp16, not {x.dtype}: convert it, as by .to(torch.bfloat16)"
    return f"a dense tensor, not {'nested' if x.is_nested else x.layout}: pass its padded or dense form"
