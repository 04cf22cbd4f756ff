"""Non-saturating adversarial losses on logits (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""

from __future__ import annotations

from torch import Tensor

from .. import registry
from ..checks import floating, like
from . import reference

__all__ = ["discriminator_loss", "generator_loss"]

registry.serve("gan_loss", generator_loss=(registry.REFERENCE,), discriminator_loss=(registry.REFERENCE,))


def _check(fake: Tensor) -> None:
    floating("fake", fake)
    if fake.dim() not in (1, 2):
        raise ValueError(f"fake must be [B] or [B, heads], not {list(fake.shape)}")


def generator_loss(fake: Tensor, *, backend: str | None = None) -> Tensor:
    """``softplus(-D(fake))``: low when the discriminator takes the sample for real.

    Args:
        fake: logits, [B] or [B, heads]; heads are averaged.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        ValueError: a dtype, layout or number of axes does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check(fake)
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
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check(fake)
    like("real", real, fake.shape, "fake", fake)
    registry.pick("discriminator_loss", backend, fake, real)
    return reference.discriminator_loss(fake, real)
