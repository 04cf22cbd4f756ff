"""Non-saturating adversarial losses on logits (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""

from __future__ import annotations

from torch import Tensor

from .. import registry
from . import reference

__all__ = ["discriminator_loss", "generator_loss"]


def generator_loss(fake: Tensor, *, backend: str | None = None) -> Tensor:
    """``softplus(-D(fake))``: low when the discriminator takes the sample for real.

    Args:
        fake: logits, [B] or [B, heads]; heads are averaged.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    registry.pick("generator_loss", backend, fake)
    return reference.generator_loss(fake)


def discriminator_loss(fake: Tensor, real: Tensor, *, backend: str | None = None) -> Tensor:
    """``softplus(D(fake)) + softplus(-D(real))``; 2 log 2 at chance.

    Args:
        fake: logits of generated samples, [B] or [B, heads]; heads are averaged.
        real: logits of real samples, same shape.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each pair, [B], at least fp32.

    Raises:
        ValueError: the shapes differ.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    if fake.shape != real.shape:
        raise ValueError(f"real must have fake's shape {list(fake.shape)}, not {list(real.shape)}")
    registry.pick("discriminator_loss", backend, fake, real)
    return reference.discriminator_loss(fake, real)
