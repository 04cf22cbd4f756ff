"""The element types of the compiled kernels, by the numbers that csrc/ knows them by."""

from __future__ import annotations

import torch
from torch import Tensor

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def new_fp32(x: Tensor, *shape: int) -> Tensor:
    """Memory for statistics and sums beside x."""
    return x.new_empty(shape, dtype=torch.float32)
