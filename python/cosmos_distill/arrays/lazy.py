"""A tensor that is made when it is needed: put together from pieces, or scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Lazy:
    """What is known of a tensor before it is made, under torch's names."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]
    """Returns it; each call makes it anew."""

    def is_floating_point(self) -> bool:
        """Like that of a tensor."""
        return self.dtype.is_floating_point


Value = torch.Tensor | Lazy


def made(value: Value) -> torch.Tensor:
    """The tensor itself.

    Raises:
        ValueError: its file is damaged.
    """
    return value.make() if isinstance(value, Lazy) else value
