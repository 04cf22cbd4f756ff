"""What is measured: the mini network's size, and the published networks' widths with fewer tokens, yet more
than fit any cache. Both dtypes and passes for one of them; the rest shows that the width does not matter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Size:
    """[batch, tokens, heads * head_dim] of a network's activations."""

    name: str
    batch: int
    tokens: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    def __str__(self) -> str:
        return f"{self.name} {self.batch}x{self.tokens}x{self.width}"


MINI = Size("mini", 16, 48, 6, 32)
TRANSFER1 = Size("Transfer1-7B", 1, 2048, 32, 128)
PREDICT25_2B = Size("Predict2.5-2B", 1, 4096, 16, 128)
PREDICT25_14B = Size("Predict2.5-14B", 1, 1600, 40, 128)

FP32, BF16 = torch.float32, torch.bfloat16
CASES = [
    *((MINI, FP32, backward) for backward in (False, True)),
    *((TRANSFER1, dtype, backward) for dtype in (FP32, BF16) for backward in (False, True)),
    *((size, dtype, True) for size in (PREDICT25_2B, PREDICT25_14B) for dtype in (FP32, BF16)),
]
IDS = [f"{size}-{str(dtype)[6:]}-{'fwd+bwd' if backward else 'fwd'}" for size, dtype, backward in CASES]

over_cases = pytest.mark.parametrize(("size", "dtype", "backward"), CASES, ids=IDS)
