"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.config import Guidance


def combine(cond: Tensor, uncond: Tensor, guidance: Guidance) -> Tensor:
    """The guided prediction, in the guidance's own convention.

    Both conventions are linear, so x0 and eps may be combined alike.
    """
    out: Tensor = ops.combine_guidance(cond, uncond, guidance.scale, guidance.convention)
    return out
