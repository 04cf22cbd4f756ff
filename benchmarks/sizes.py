"""What is measured: the mini network's size, and the published networks' widths with fewer tokens, yet more
than fit any cache."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Size:
    """[batch, tokens, heads * head_dim] of a network's activations; [batch, frames, tokens, heads * head_dim]
    where each frame has a noise level of its own."""

    name: str
    batch: int
    tokens: int
    heads: int
    head_dim: int
    frames: int | None = None
    """``tokens`` are of all of them."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def groups(self) -> tuple[int, ...]:
        """Of tokens that are modulated alike: [batch], or [batch, frames]."""
        return (self.batch,) if self.frames is None else (self.batch, self.frames)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.groups, self.tokens // (self.frames or 1), self.width)

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"


MINI = Size("mini", 16, 48, 6, 32)
TRANSFER1 = Size("Transfer1-7B", 1, 2048, 32, 128)
PREDICT25_2B = Size("Predict2.5-2B", 1, 4096, 16, 128, frames=16)
PREDICT25_14B = Size("Predict2.5-14B", 1, 1600, 40, 128, frames=16)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CASES: list[tuple[Size, torch.dtype, bool]] = [
    *((MINI, FP32, backward) for backward in (False, True)),
    *((TRANSFER1, dtype, backward) for dtype in (FP32, BF16) for backward in (False, True)),
    (TRANSFER1, FP16, True),
    *(
        (size, dtype, backward)
        for size in (PREDICT25_2B, PREDICT25_14B)
        for dtype in (FP32, BF16)
        for backward in (False, True)
    ),
]


def over(cases: list[tuple[Size, torch.dtype, bool]]) -> pytest.MarkDecorator:
    """Parametrise a benchmark by ``size``, ``dtype`` and ``backward``."""
    ids = [f"{size}-{str(dtype)[6:]}-{'fwd+bwd' if backward else 'fwd'}" for size, dtype, backward in cases]
    return pytest.mark.parametrize(("size", "dtype", "backward"), cases, ids=ids)
