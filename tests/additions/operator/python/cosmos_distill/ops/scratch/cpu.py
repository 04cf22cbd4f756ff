"""The kernel of csrc/scratch.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiled import kernels
from ..elements import ELEMENTS


def scratch_scale(x: Tensor, factor: float) -> Tensor:
    out = torch.empty_like(x)
    kernels.scratch_scale(ELEMENTS[x.dtype], x.numel(), x.data_ptr(), factor, out.data_ptr())
    return out
