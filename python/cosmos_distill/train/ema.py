"""Exponential moving average of the student's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``average <- decay * average + (1 - decay) * weights`` after every student step, kept in fp32.

    Args:
        weights: the fp32 weights to follow by name (of bf16 networks: the optimiser's masters, since the
            small differences of one step vanish in bf16). The average starts as a copy of them.
        decay: in [0, 1).

    Raises:
        ValueError: if decay is outside [0, 1).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.weights = weights
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        torch._foreach_lerp_(
            list(self.average.values()), [w.detach() for w in self.weights.values()], 1.0 - self.decay
        )

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the average bit for bit.

        Raises:
            ValueError: if the names differ.
        """
        if saved.keys() != self.average.keys():
            odd = sorted(saved.keys() ^ self.average.keys())[:3]
            raise ValueError(f"the saved average does not fit the student, for example at {odd}")
        for name, value in saved.items():
            self.average[name].copy_(value)

    def state_dict(self, network: nn.Module) -> dict[str, Tensor]:
        """``network.state_dict()`` with the averaged weights in place, in the network's dtypes."""
        return {
            name: self.average[name].to(value.dtype) if name in self.average else value.detach()
            for name, value in network.state_dict().items()
        }

    @contextmanager
    @torch.no_grad()
    def applied_to(self, network: nn.Module) -> Iterator[None]:
        """Inside the block the network computes with the averaged weights; afterwards with its own again."""
        own = {name: p.detach().clone() for name, p in network.named_parameters() if name in self.average}
        parameters = dict(network.named_parameters())
        for name in own:
            parameters[name].copy_(self.average[name])
        try:
            yield
        finally:
            for name, value in own.items():
                parameters[name].copy_(value)
