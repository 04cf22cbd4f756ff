"""A network of someone else's, with an adapter, and samples for it: as small as can be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cosmos_distill import EDM, Adapter, TrigFlow

CHANNELS, WIDTH, TEXT = 2, 16, 4
SHAPE = (CHANNELS, 3, 4, 4)


class Network(nn.Module):
    """Pointwise layers over tokens, told the noise level and the text; batch norm has a state of its own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter, self.leave = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
            self.time, self.prompt = nn.Linear(1, WIDTH), nn.Linear(TEXT, WIDTH)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
            self.unread = nn.Linear(WIDTH, WIDTH)
        self.passes = 0

    def forward(self, x: Tensor, time: Tensor, prompt: Tensor) -> Tensor:
        told = self.time(time[:, None].to(x.dtype)) + self.prompt(prompt.mean(1))
        h = self.enter(x.flatten(2).transpose(1, 2)) + told[:, None]
        for layer in self.layers:
            h = h + layer(torch.tanh(h))
        self.passes += 1
        return self.leave(h).transpose(1, 2).reshape(x.shape)


class Foreign(Adapter):
    def predict(self, x: Tensor, c_noise: Tensor, *, text: Tensor, **others: Any) -> Tensor:
        out: Tensor = self.network(x, c_noise, text)
        return out


def adapter(
    seed: int = 0, schedule: EDM | TrigFlow | None = None, *, named: bool = True, **options: Any
) -> Foreign:
    """With blocks to read features from, if ``named``."""
    blocks = {"blocks": ("layers.0", "layers.1"), "width": WIDTH} if named else {}
    return Foreign(Network(seed), schedule or EDM(), patch=(1, 1, 1), **(blocks | options))


def samples(count: int = 12) -> list[dict[str, Tensor]]:
    """Sample n is a function of n."""
    generators = [torch.Generator().manual_seed(n) for n in range(count)]
    return [
        {"latents": 0.5 * torch.randn(SHAPE, generator=g), "text": torch.randn(3, TEXT, generator=g)}
        for g in generators
    ]
