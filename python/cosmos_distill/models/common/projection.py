"""The frozen text projection of a network by itself, so that what is behind it can be stored: of
Cosmos-Predict2.5's 512 x 100,352 numbers a prompt, 512 x 1,024."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from cosmos_distill.models.common import weights

_NAMES = ("base.text_projection.proj.weight", "base.text_projection.proj.bias")
_ROWS = 64
"""Of the matrix, hashed at once."""


class TextProjection:
    """GELU(linear) as :class:`cosmos_distill.models.common.dit.TextProjection` computes it, from a network's
    files. The tensors are mapped when they are first used; a copy in another process maps its own.

    Args:
        source: The network's weights.

    Raises:
        ValueError: they have no such layer.
    """

    def __init__(self, source: weights.Source) -> None:
        self._source = source
        self._placed: tuple[torch.Tensor, torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_placed": None, "sha256": self.sha256}

    @cached_property
    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = weights.some(self._source, _NAMES)
        return weight, bias

    @property
    def width(self) -> int:
        """Channels behind it."""
        return self._tensors[0].shape[0]

    @cached_property
    def sha256(self) -> str:
        """Of the numbers, whatever type they are stored in: a copy of bf16 weights in fp32 is the same."""
        found = hashlib.sha256()
        for tensor in self._tensors:
            found.update(str(list(tensor.shape)).encode())
            for rows in tensor.split(_ROWS):
                found.update(rows.float().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        """[..., channels] -> [..., width], on the device and in the type of ``wide``."""
        placed = self._placed
        if placed is None or (placed[0].device, placed[0].dtype) != (wide.device, wide.dtype):
            weight, bias = (tensor.to(wide.device, wide.dtype) for tensor in self._tensors)
            placed = self._placed = weight, bias
        return F.gelu(F.linear(wide, *placed))

    def free(self) -> None:
        """Give the memory of the accelerator back."""
        self._placed = None
