"""What ties a network to a noise level, in the shapes of a latent."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CLEAN_SIGMA = 1e-4
"""Noise level that a network is told for frames that it is given clean."""


class Preconditioning(NamedTuple):
    """x0 = c_skip * x_t + c_out * network(c_in * x_t, c_noise)."""

    c_skip: Tensor
    """[B, 1, 1, 1, 1], or [B, 1, T, 1, 1] at per-frame times; c_out and c_in likewise."""
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    """[B] or [B, T], what the time embedding of the network sees."""


class Given(NamedTuple):
    """Leading frames as a network gets them; it finds them marked in a channel of its input."""

    mask: Tensor
    """True on given frames, bool [B, 1, T, 1, 1]."""
    latent: Tensor
    """What stands in the network's input there, [B, C, T, H, W]."""
    times: Tensor
    """Noise coordinate that the network is told, [B], or [B, T] if given frames have their own."""


def per_sample(values: Tensor, ndim: int = 5) -> Tensor:
    """Reshape ``[B]`` to ``[B, 1, 1, ...]`` with ``ndim`` dimensions, to broadcast over a latent."""
    return values.reshape(-1, *(1,) * (ndim - 1))


def over_latent(values: Tensor) -> Tensor:
    """Reshape ``[B]`` to ``[B, 1, 1, 1, 1]`` and ``[B, T]`` to ``[B, 1, T, 1, 1]``."""
    return values[:, None, :, None, None] if values.ndim == 2 else per_sample(values)
