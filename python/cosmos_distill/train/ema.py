"""Moving average of the student's weights, exponential or with a power-function profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.parallel import groups
from cosmos_distill.train.optim import RoleOptimizer

Decay = Callable[[int], float]
"""decay(n): share of the old average that remains at the update after n others"""


def constant(decay: float) -> Decay:
    """The exponential average.

    Raises:
        ValueError: if decay is outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"ema_decay must be at least 0 and below 1, not {decay}")
    return lambda n: decay


def power(width: float) -> Decay:
    """``(1 - 1 / (n + 1)) ** (gamma + 1)``: weights n steps into the training count as n ** gamma (Karras et
    al. 2024, arXiv 2312.02696, section 3.1). ``width``, the standard deviation of that profile over its
    length, gives gamma, the largest real root of g^3 + 7 g^2 + (16 - width^-2) g + (12 - width^-2).

    Raises:
        ValueError: if no profile has this width.
    """
    if not 0.0 < width < 0.28:
        raise ValueError(f"ema_power must lie between 0 and 0.28, not {width}: a relative width like 0.1")
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    gamma = float(roots.real[np.abs(roots.imag) < 1e-9].max())
    return lambda n: (1.0 - 1.0 / (n + 1)) ** (gamma + 1.0)


class EMA:
    """``average <- decay * average + (1 - decay) * weights`` after every student step, kept in fp32.

    Args:
        weights: the fp32 weights to follow by name (of bf16 networks: the optimiser's masters, since the
            small differences of one step vanish in bf16). The average starts as a copy of them.
        decay: of :func:`constant` or :func:`power`.

    Attributes:
        updates: updates done so far.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: Decay) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = weights
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        torch._foreach_lerp_(
            list(self.average.values()),
            [w.detach() for w in self.weights.values()],
            1.0 - self.decay(self.updates),
        )
        self.updates += 1

    @contextmanager
    def applied_to(self, optimizer: RoleOptimizer) -> Iterator[None]:
        """Inside the block the network of ``optimizer`` computes with the averaged weights; afterwards with
        its own again. Collective, so that after an error the averages stay where there are other ranks: they
        may wait for this one elsewhere, and a rank that fails must not wait for them."""
        masters, copies = optimizer.masters, optimizer.share.copies
        own = {n: masters[n].detach() if n in copies else masters[n].detach().clone() for n in self.average}
        optimizer.write(self.average)
        try:
            yield
        except BaseException:
            if groups.world_group().size() == 1:
                optimizer.write(own)
            raise
        optimizer.write(own)
