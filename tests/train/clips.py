"""Clips for a real network, of the smoke preset."""

from __future__ import annotations

import torch

from cosmos_distill.data.batch import Batch
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.train.guard import StopFlag

CONFIG = PRESETS["transfer1-smoke"]


class Clips:
    """Smooth random clips with their sign as control; ``stop`` is set when sample ``last`` is asked for."""

    def __init__(self, stop: StopFlag | None = None, last: int = -1) -> None:
        self.stop, self.last = stop, last

    def batch(self, first: int, count: int) -> Batch:
        if self.stop is not None and first <= self.last < first + count:
            self.stop.request("SIGTERM")
        generators = [torch.Generator().manual_seed(n) for n in range(first, first + count)]
        coarse = torch.stack([torch.randn(CONFIG.latent_channels, 1, 2, 2, generator=g) for g in generators])
        latents = 0.5 * torch.nn.functional.interpolate(coarse, size=(3, 4, 4), mode="trilinear")
        text = torch.stack(
            [torch.randn(CONFIG.text_tokens, CONFIG.text_dim, generator=g) for g in generators]
        )
        return Batch.of(
            first,
            {
                "latents": latents,
                "hint": latents.sign() * 0.5,
                "text": text,
                "negative_text": torch.zeros_like(text),
                "fps": torch.full((count,), 24.0),
                "padding_mask": torch.zeros(count, 1, 4, 4),
            },
        )
