"""Given frames must come back: PSNR per frame against what the tokenizer makes of the real clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EXACT = 100.0
"""PSNR in dB that stands for no difference at all."""


def squared_errors(video: Tensor, wanted: Tensor, given: Sequence[int]) -> Tensor:
    """Mean squared error of every given frame in grey levels, fp64 [B, F]; NaN on frames not given.

    Args:
        video: Generated clips, uint8 [B, 3, F, H, W].
        wanted: The real clips after the tokenizer's round trip, same shape.
        given: How many leading frames of each clip were given.
    """
    error = (video.cpu().double() - wanted.cpu().double()).square().mean((1, 3, 4))
    index = torch.arange(error.shape[1])
    return torch.where(index < torch.as_tensor(given)[:, None], error, torch.nan)


def summary(errors: Tensor) -> dict[str, Any]:
    """Of :func:`squared_errors` [B, F]: ``psnr`` in dB of every frame that was ever given, in order, at most
    100 (exact), ``exact``, and the ``clips`` that each is a mean over."""
    clips = (~errors.isnan()).sum(0)
    means = [float(errors[:, f].nanmean()) for f in range(errors.shape[1]) if clips[f]]
    psnr = [EXACT if m == 0 else min(EXACT, 10 * float(torch.tensor(255.0**2 / m).log10())) for m in means]
    return {"psnr": psnr, "exact": all(m == 0 for m in means), "clips": [n for n in clips.tolist() if n]}
