"""Distribution matching distillation in x0 space (Yin et al. 2024, arXiv 2311.18828 and 2405.14867).

With eps_hat = (x_t - x0_hat) / sigma the eps-space formulas of Transfer1 and the x0-space formulas of
Predict2.5 are the same; x0 space needs no division by a small sigma. All means are per sample.

One family serves the published variants: how the direction is normalised and reduced is a :class:`VSDForm`,
and predictions are either x0 or, with :class:`Preconditioned`, the raw outputs of networks.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .. import registry
from ..checks import choice, number, typed
from . import fused, reference
from .forms import DMD2, FASTGEN, PREDICT25, RCM, TRANSFER1, VSDForm
from .inputs import (
    Preconditioned,
    SumOverShards,
    check,
    check_mask,
    check_per_sample,
    check_preconditioned,
    check_sum,
    x_t_and_coefficients,
)
from .vsd import vsd_direction, vsd_loss

__all__ = [
    "DMD2",
    "FASTGEN",
    "PREDICT25",
    "RCM",
    "TRANSFER1",
    "CriticWeighting",
    "Preconditioned",
    "VSDForm",
    "combine_guidance",
    "fake_score_loss",
    "renoise",
    "vsd_direction",
    "vsd_loss",
]

registry.serve("dm_loss", renoise=registry.FUSED, vsd_loss=registry.FUSED, fake_score_loss=registry.FUSED)

CriticWeighting = Literal["eps", "x0", "trigflow"]


def renoise(
    x0: Tensor, eps: Tensor, sigma: Tensor, *, alpha: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``alpha * x0 + sigma * eps``, differentiable in x0 alone.

    EDM: sigma alone. Rectified flow at time tau: alpha 1 - tau, sigma tau. TrigFlow at angle t with unit
    data: alpha cos t, sigma sin t.

    Args:
        x0: clean latent, [B, ...].
        eps: unit Gaussian noise, same shape.
        sigma: factor of the noise in each sample, [B].
        alpha: factor of the signal, [B]; None is 1.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        x_t, of x0's shape, at least fp32.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    check("x0", x0, eps=eps)
    check_per_sample(x0, sigma=sigma, alpha=alpha)
    chosen = registry.pick("renoise", backend, x0, eps, learned=(x0, eps, sigma, alpha))
    if chosen == "reference":
        alpha = None if alpha is None else alpha.detach()
        return reference.renoise(x0, eps.detach(), alpha, sigma.detach())
    return fused.renoise(x0, eps, alpha, sigma, chosen)


def combine_guidance(
    cond: Tensor, uncond: Tensor, scale: float, convention: Literal["added", "standard"] = "added"
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6) under a named convention.

    ``added``, as Cosmos counts: cond + scale * (cond - uncond); its 5 is ``standard``'s 6. ``standard``:
    uncond + scale * (cond - uncond).

    Args:
        cond: prediction under the prompt.
        uncond: prediction under the negative or empty prompt, same shape and dtype.
        scale: strength.
        convention: what ``scale`` means.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or the convention is unknown.
    """
    check("cond", cond, uncond=uncond)
    typed("uncond", uncond, cond.dtype)
    number("scale", scale)
    choice("convention", convention, ("added", "standard"))
    return torch.lerp(uncond, cond, 1 + scale if convention == "added" else scale)


def fake_score_loss(
    x0_fake: Tensor,
    x0_student: Tensor,
    sigma: Tensor,
    weighting: CriticWeighting = "eps",
    *,
    preconditioned: Preconditioned | None = None,
    frame_mask: Tensor | None = None,
    sum_over_shards: SumOverShards | None = None,
    backend: str | None = None,
) -> Tensor:
    """Denoising loss of the fake score network on the student's samples: w mean m (x0_student - x0_fake)^2.

    ``eps``: w = 1 / sigma^2, the error of the predicted noise; ``x0``: w = 1; ``trigflow``: w = 1 / sin^2 t
    with t = atan sigma, the error of the predicted TrigFlow velocity.

    Args:
        x0_fake: its prediction on the renoised sample, [B, ...]; the only input that gets a gradient.
        x0_student: the student's sample, same shape.
        sigma: EDM noise level of each sample, [B] (TrigFlow: tan t).
        weighting: which error is averaged.
        preconditioned: given, x0_fake is the raw network output.
        frame_mask: as in :func:`vsd_loss`.
        sum_over_shards: as in :func:`vsd_loss`, called once, on [B, 2].
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or ``weighting`` is unknown.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    check("x0_fake", x0_fake, x0_student=x0_student)
    check_per_sample(x0_fake, sigma=sigma)
    check_preconditioned("x0_fake", x0_fake, preconditioned)
    check_mask(x0_fake, frame_mask)
    choice("weighting", weighting, ("eps", "x0", "trigflow"))
    check_sum(sum_over_shards)
    x_t, coefficients = x_t_and_coefficients(preconditioned)
    latents = (x0_fake, x0_student, x_t)
    chosen = registry.pick(
        "fake_score_loss", backend, *(t for t in latents if t is not None), learned=(*latents, sigma)
    )
    if chosen == "reference":
        fake, target, x_t = reference.wide(x0_fake, x0_student.detach(), x_t)
        frame_mask = None if frame_mask is None else frame_mask.detach()
        error = reference.squared_error(fake, target, x_t, coefficients, frame_mask)
    else:
        error = fused.squared_error(x0_fake, x0_student, x_t, coefficients, frame_mask, chosen)
    total, count = error.detach(), error.new_full(error.shape, math.prod(x0_fake.shape[1:]))
    if sum_over_shards is not None:
        total, count = sum_over_shards(torch.stack([total, count], dim=1)).unbind(1)
    precision = sigma.detach().to(error.dtype).square().reciprocal()
    weight = {"eps": precision, "x0": torch.ones_like(precision), "trigflow": 1 + precision}[
        weighting
    ] / count
    return weight * (error + (total - error.detach()))
