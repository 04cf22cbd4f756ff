"""Where elements lie. The stride of an axis of one element says nothing: whatever it is, torch calls the
tensor contiguous and hands it on as it is. No kernel may be told of such a stride, and results have the
strides of fresh memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced(x: Tensor) -> bool:
    """Whether one distance lies between all neighbouring rows [first axis, second axis]."""
    batch, length = x.size(0), x.size(1)
    return x.stride(0) == length * x.stride(1) or batch == 1 or length == 1


def spacing(x: Tensor, axes: int) -> int:
    """Elements between rows along so many first axes, which are evenly spaced."""
    for axis in range(axes - 1, 0, -1):
        if x.size(axis) != 1:
            return x.stride(axis)
    return x.stride(0)


def dense(x: Tensor) -> Tensor:
    """x, or a copy, contiguous and with the strides of fresh memory."""
    x = x.contiguous()
    if 1 not in x.shape:
        return x
    distance = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != distance:
            return x.view(-1).view(x.shape)  # as_strided would do, but its gradient copies
        distance *= max(size, 1)
    return x


def new_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Fresh memory for a result like x, of x's dtype or this one. Left alone, torch.empty_like hands strides
    on."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
