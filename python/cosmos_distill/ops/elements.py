"""Elements and addresses of tensors as compiled kernels know them, and memory for the fp32 beside them."""

from __future__ import annotations

import torch
from torch import Tensor

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def new_fp32(x: Tensor, *shape: int) -> Tensor:
    """Memory for statistics and sums beside x."""
    return x.new_empty(shape, dtype=torch.float32)


def nothing(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What stands for a result that is not wanted. Its address is 0."""
    return x.new_empty(0, dtype=dtype)


def address(x: Tensor | None) -> int:
    """0 for None."""
    return 0 if x is None else x.data_ptr()
