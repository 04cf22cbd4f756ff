"""The element types of the compiled kernels, by the numbers that csrc/ knows them by."""

from __future__ import annotations

import torch

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
