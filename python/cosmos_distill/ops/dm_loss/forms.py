"""The published variants of the variational score distillation loss, as settings of one formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..checks import choice, flag, number


@dataclass(frozen=True)
class VSDForm:
    """``normaliser = max(sum m |x - x0_teacher| / max(sum m, 1) , floor) + offset`` for each sample, and what
    becomes of the squares of the normalised direction."""

    floor: float = 0.0
    """Smallest normaliser, in units of the latent: where the teacher agrees with the student exactly the
    gradient stays finite."""
    offset: float = 0.0
    """Added to the normaliser for the same purpose."""
    factor: float = 0.5
    """Of the squares; the gradient is twice it."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the elements of a sample."""
    zero_nonfinite: bool = False
    """A sample with a NaN or an infinity counts nothing instead of showing it (``return_zeroed`` tells).

    DMD2's published code zeroes single elements of the normalised direction (``nan_to_num``). Where the
    normaliser is NaN that is the same; where only x0_fake has a NaN it goes on learning from the rest of the
    sample, and it turns an infinity into the largest number there is. Here the whole sample is left out:
    a prediction with an element that is no number vouches for none of its others."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field."""
        for name in ("floor", "offset"):
            number(name, getattr(self, name), least=0)
        number("factor", self.factor)
        choice("reduction", self.reduction, ("mean", "sum"))
        flag("zero_nonfinite", self.zero_nonfinite)

    def weigh(self, sums: Tensor) -> Weighed:
        """What whole samples come to.

        Args:
            sums: [B, 4], over whole samples, of m |x - x0_teacher|, direction^2, m, and 1.
        """
        distance, square, kept, count = sums.unbind(1)
        weight = ((distance / kept.clamp(min=1)).clamp(min=self.floor) + self.offset).reciprocal()
        scale = weight * self.factor / (count if self.reduction == "mean" else 1)
        loss, slope = scale * weight * square, 2 * scale
        zeroed = torch.zeros_like(loss)
        if self.zero_nonfinite:
            finite = loss.isfinite()
            weight, loss, slope = (torch.where(finite, value, 0) for value in (weight, loss, slope))
            zeroed = (~finite).to(loss)
        return Weighed(weight, loss, slope, zeroed)


class Weighed(NamedTuple):
    """Of each sample, [B] each."""

    weight: Tensor
    """1 / normaliser, or 0 where the sample is left out."""
    loss: Tensor
    slope: Tensor
    """What the direction is multiplied by to give the gradient of the loss."""
    zeroed: Tensor
    """1 where a form has left the sample out, else 0."""


TRANSFER1 = VSDForm(floor=1e-5)
"""Cosmos-Transfer1, with a floor where the original divides by zero."""
PREDICT25 = VSDForm(floor=1e-5, factor=1.0, zero_nonfinite=True)
"""Cosmos-Predict2.5."""
FASTGEN = VSDForm(offset=1e-6)
"""NVIDIA FastGen."""
DMD2 = VSDForm(zero_nonfinite=True)
"""Yin et al. 2024, arXiv 2405.14867; also FastVideo and Self-Forcing. All of them silence elements where this
silences samples: see :attr:`VSDForm.zero_nonfinite`."""
RCM = VSDForm(floor=1e-5, factor=1.0, reduction="sum", zero_nonfinite=True)
"""rCM (arXiv 2510.08431)."""
