"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from torch import Tensor

from cosmos_distill.config import Guidance


def combine(cond: Tensor, uncond: Tensor, guidance: Guidance) -> Tensor:
    """The guided prediction, in the guidance's own convention.

    ``added``: cond + scale * (cond - uncond), as the Cosmos recipes mean their 5 and 3;
    ``standard``: uncond + scale * (cond - uncond). Both are linear, so x0 and eps may be combined alike.
    """
    base = cond if guidance.convention == "added" else uncond
    return base + guidance.scale * (cond - uncond)
