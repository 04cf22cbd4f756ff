"""Distribution matching distillation in x0 space (Yin et al. 2024, arXiv 2311.18828 and 2405.14867).

With eps_hat = (x_t - x0_hat) / sigma the eps-space formulas of Transfer1 and the x0-space formulas of
Predict2.5 are the same; x0 space needs no division by a small sigma. All means are per sample.

One family serves the published variants: how the direction is normalised and reduced is a :class:`VSDForm`,
and predictions are either x0 or, with :class:`Preconditioned`, the raw outputs of networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import registry
from ..checks import beside, floating, like
from . import fused, reference
from .forms import DMD2, FASTGEN, PREDICT25, RCM, TRANSFER1, VSDForm

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
    "vsd_loss",
]

CriticWeighting = Literal["eps", "x0", "trigflow"]
SumOverShards = Callable[[Tensor], Tensor]


class Preconditioned(NamedTuple):
    """Predictions are network outputs F with x0 = c_skip * x_t + c_out * F."""

    x_t: Tensor
    """[B, ...], what the networks saw, before c_in."""
    c_skip: Tensor
    """[B]"""
    c_out: Tensor
    """[B]"""


def renoise(
    x0: Tensor, eps: Tensor, sigma: Tensor, *, alpha: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``alpha * x0 + sigma * eps``, differentiable in x0.

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
    _check("x0", x0, eps=eps)
    _check_per_sample(x0, sigma=sigma, alpha=alpha)
    chosen = registry.pick("renoise", backend, x0, eps)
    if chosen == "reference":
        return reference.renoise(x0, eps.detach(), alpha, sigma)
    return fused.renoise(x0, eps.detach(), alpha, sigma, chosen)


def combine_guidance(
    cond: Tensor, uncond: Tensor, scale: float, convention: Literal["added", "standard"] = "added"
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6) under a named convention.

    ``added``, as Cosmos counts: cond + scale * (cond - uncond); its 5 is ``standard``'s 6. ``standard``:
    uncond + scale * (cond - uncond).

    Args:
        cond: prediction under the prompt.
        uncond: prediction under the negative or empty prompt, same shape.
        scale: strength.
        convention: what ``scale`` means.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or the convention is unknown.
    """
    _check("cond", cond, uncond=uncond)
    if convention not in ("added", "standard"):
        raise ValueError(f"convention must be 'added' or 'standard', not {convention!r}")
    return torch.lerp(uncond, cond, 1 + scale if convention == "added" else scale)


def vsd_loss(
    x0_student: Tensor,
    x0_teacher: Tensor,
    x0_fake: Tensor,
    form: VSDForm = TRANSFER1,
    *,
    uncond: Tensor | None = None,
    guidance: float = 0.0,
    preconditioned: Preconditioned | None = None,
    frame_mask: Tensor | None = None,
    sum_over_shards: SumOverShards | None = None,
    backend: str | None = None,
) -> Tensor:
    """Variational score distillation: a loss whose gradient is the normalised score difference.

    ``v = m (x0_fake - x0_teacher) / normaliser`` with the normaliser of :class:`VSDForm`, and, with sg for
    stop-gradient and N elements in a sample, ``factor / N * sum (x0_student - sg(x0_student - v))^2``: the
    gradient w.r.t. x0_student is 2 factor v / N. Equal to Transfer1's
    ``v = (eps_T - eps_S) / mean |eps - eps_T|``.

    Args:
        x0_student: the student's sample, [B, ...]; the only input that gets a gradient.
        x0_teacher: the teacher's prediction on the renoised sample, same shape.
        x0_fake: the fake score network's prediction there, same shape.
        form: which published variant; the default is Transfer1's.
        uncond: the teacher's prediction without the prompt; the teacher's is then
            x0_teacher + guidance * (x0_teacher - uncond).
        guidance: strength in the ``added`` convention, used with ``uncond``.
        preconditioned: given, all predictions are raw network outputs.
        frame_mask: [B, T] for latents [B, C, T, H, W]: 1 where a frame counts, 0 where it is given (m above).
            Masked elements count in N.
        sum_over_shards: adds a tensor up over the ranks that hold slices of the same samples (an all-reduce);
            loss and gradient are then those of whole samples, whatever the slicing. Called once, on [B, 4].
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check("x0_student", x0_student, x0_teacher=x0_teacher, x0_fake=x0_fake, uncond=uncond)
    _check_preconditioned("x0_student", x0_student, preconditioned)
    _check_mask(x0_student, frame_mask)
    x_t, coefficients = _coefficients(preconditioned)
    latents = (x0_student, x0_teacher, x0_fake, uncond, x_t)
    chosen = registry.pick("vsd_loss", backend, *(t for t in latents if t is not None))
    mask = None if frame_mask is None else frame_mask.float()
    with torch.no_grad():
        if chosen == "reference":
            x, teacher, fake, uncond, x_t = reference.wide(*latents)
            direction, sums = reference.vsd(x, teacher, fake, uncond, x_t, guidance, coefficients, mask)
        else:
            x, teacher, fake, uncond, x_t = fused.dense(*latents)
            direction, sums = fused.vsd(x, teacher, fake, uncond, x_t, guidance, coefficients, mask, chosen)
        sums = torch.cat([sums, sums.new_full((sums.shape[0], 1), math.prod(x0_student.shape[1:]))], dim=1)
        if sum_over_shards is not None:
            sums = sum_over_shards(sums)
        loss, slope = form.loss_and_slope(sums)
    if chosen == "reference":
        return reference.with_gradient(x0_student, loss, slope, direction)
    known: Tensor = fused.with_gradient(x0_student, loss, slope, direction, chosen)
    return known


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
        x0_fake: its prediction on the renoised sample, [B, ...].
        x0_student: the student's sample, same shape; gets no gradient.
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
    _check("x0_fake", x0_fake, x0_student=x0_student)
    _check_per_sample(x0_fake, sigma=sigma)
    _check_preconditioned("x0_fake", x0_fake, preconditioned)
    _check_mask(x0_fake, frame_mask)
    if weighting not in ("eps", "x0", "trigflow"):
        raise ValueError(f"weighting must be 'eps', 'x0' or 'trigflow', not {weighting!r}")
    x_t, coefficients = _coefficients(preconditioned)
    latents = (x0_fake, x0_student, x_t)
    chosen = registry.pick("fake_score_loss", backend, *(t for t in latents if t is not None))
    mask = None if frame_mask is None else frame_mask.float()
    target = x0_student.detach()
    if chosen == "reference":
        fake, target, x_t = reference.wide(x0_fake, target, x_t)
        error = reference.squared_error(fake, target, x_t, coefficients, mask)
    else:
        target, x_t = fused.dense(target, x_t)
        error = fused.squared_error(x0_fake.contiguous(), target, x_t, coefficients, mask, chosen)
    total, count = error.detach(), error.new_full(error.shape, math.prod(x0_fake.shape[1:]))
    if sum_over_shards is not None:
        total, count = sum_over_shards(torch.stack([total, count], dim=1)).unbind(1)
    precision = sigma.to(error.dtype).square().reciprocal()
    weight = {"eps": precision, "x0": torch.ones_like(precision), "trigflow": 1 + precision}[
        weighting
    ] / count
    return weight * (error + (total - error.detach()))


def _coefficients(preconditioned: Preconditioned | None) -> tuple[Tensor | None, Tensor | None]:
    """x_t and [B, 2], at least fp32."""
    if preconditioned is None:
        return None, None
    both = torch.stack([preconditioned.c_skip, preconditioned.c_out], dim=1).detach()
    return preconditioned.x_t.detach(), both.to(torch.promote_types(both.dtype, torch.float32))


def _check(first: str, x0: Tensor, **others: Tensor | None) -> None:
    """Latents [B, ...] of one shape, on one device."""
    floating(first, x0)
    if x0.dim() == 0:
        raise ValueError(f"{first} must be [B, ...], not a scalar")
    for name, value in others.items():
        if value is not None:
            like(name, value, x0.shape, first, x0)


def _check_per_sample(x0: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None:
            floating(name, value)
            if value.shape != x0.shape[:1]:
                raise ValueError(f"{name} must be [{x0.shape[0]}], one per sample, not {list(value.shape)}")
            beside(name, value, "the latent", x0)


def _check_preconditioned(first: str, x0: Tensor, preconditioned: Preconditioned | None) -> None:
    if preconditioned is not None:
        _check(first, x0, x_t=preconditioned.x_t)
        _check_per_sample(x0, c_skip=preconditioned.c_skip, c_out=preconditioned.c_out)


def _check_mask(x0: Tensor, frame_mask: Tensor | None) -> None:
    if frame_mask is None:
        return
    dense = isinstance(frame_mask, Tensor) and frame_mask.layout is torch.strided and not frame_mask.is_nested
    if not dense or frame_mask.is_complex():
        raise ValueError("frame_mask must be a dense tensor of real numbers")
    if x0.dim() != 5:
        raise ValueError(f"frame_mask needs latents [B, C, T, H, W], not {list(x0.shape)}")
    if frame_mask.shape != (x0.shape[0], x0.shape[2]):
        raise ValueError(f"frame_mask must be {[x0.shape[0], x0.shape[2]]}, not {list(frame_mask.shape)}")
    beside("frame_mask", frame_mask, "the latent", x0)
