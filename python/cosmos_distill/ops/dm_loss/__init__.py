"""Distribution matching distillation in x0 space (Yin et al. 2024, arXiv 2311.18828 and 2405.14867).

With eps_hat = (x_t - x0_hat) / sigma the eps-space formulas of Transfer1 and the x0-space formulas of
Predict2.5 are the same; x0 space needs no division by a small sigma. All means are per sample.

One family serves the published variants: how the direction is normalised and reduced is a :class:`VSDForm`,
and predictions are either x0 or, with :class:`Preconditioned`, the raw outputs of networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from .. import registry
from ..checks import typed
from . import fused, reference
from .forms import DMD2, FASTGEN, PREDICT25, RCM, TRANSFER1, VSDForm
from .inputs import (
    Preconditioned,
    check,
    check_mask,
    check_per_sample,
    check_preconditioned,
    x_t_and_coefficients,
)

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
    check("x0", x0, eps=eps)
    check_per_sample(x0, sigma=sigma, alpha=alpha)
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
        uncond: prediction under the negative or empty prompt, same shape and dtype.
        scale: strength.
        convention: what ``scale`` means.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or the convention is unknown.
    """
    check("cond", cond, uncond=uncond)
    typed("uncond", uncond, cond.dtype)
    if convention not in ("added", "standard"):
        raise ValueError(f"convention must be 'added' or 'standard', not {convention!r}")
    return torch.lerp(uncond, cond, 1 + scale if convention == "added" else scale)


@overload
def vsd_loss(
    x0_student: Tensor,
    x0_teacher: Tensor,
    x0_fake: Tensor,
    form: VSDForm = ...,
    *,
    uncond: Tensor | None = ...,
    guidance: float = ...,
    preconditioned: Preconditioned | None = ...,
    frame_mask: Tensor | None = ...,
    sum_over_shards: SumOverShards | None = ...,
    return_zeroed: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def vsd_loss(
    x0_student: Tensor,
    x0_teacher: Tensor,
    x0_fake: Tensor,
    form: VSDForm = ...,
    *,
    uncond: Tensor | None = ...,
    guidance: float = ...,
    preconditioned: Preconditioned | None = ...,
    frame_mask: Tensor | None = ...,
    sum_over_shards: SumOverShards | None = ...,
    return_zeroed: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


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
    return_zeroed: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
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
        guidance: strength in the ``added`` convention; anything but 0 needs ``uncond``.
        preconditioned: given, all predictions are raw network outputs.
        frame_mask: [B, T] for latents [B, C, T, H, W]: 1 where a frame counts, 0 where it is given (m above).
            Masked elements count in N.
        sum_over_shards: adds a tensor up over the ranks that hold slices of the same samples (an all-reduce);
            loss and gradient are then those of whole samples, whatever the slicing. Called once, on [B, 4].
        return_zeroed: also tell which samples were silenced for not being finite (by a form that does that).
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32; with ``return_zeroed`` the pair of it and, alike, 1 for
        each sample whose loss and gradient were set to zero, else 0.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, ``guidance`` lacks ``uncond``, or a setting
            is of another type; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    if not isinstance(form, VSDForm):
        raise ValueError(f"form must be a VSDForm, not {type(form).__name__}")
    if uncond is None and guidance != 0:
        raise ValueError(f"guidance is {guidance} but uncond is missing: give both or neither")
    check("x0_student", x0_student, x0_teacher=x0_teacher, x0_fake=x0_fake, uncond=uncond)
    check_preconditioned("x0_student", x0_student, preconditioned)
    check_mask(x0_student, frame_mask)
    x_t, coefficients = x_t_and_coefficients(preconditioned)
    latents = (x0_student, x0_teacher, x0_fake, uncond, x_t)
    chosen = registry.pick("vsd_loss", backend, *(t for t in latents if t is not None))
    with torch.no_grad():
        if chosen == "reference":
            x, teacher, fake, uncond, x_t = reference.wide(*latents)
            direction, sums = reference.vsd(x, teacher, fake, uncond, x_t, guidance, coefficients, frame_mask)
        else:
            direction, sums = fused.vsd(*latents, guidance, coefficients, frame_mask, chosen)
        sums = torch.cat([sums, sums.new_full((sums.shape[0], 1), math.prod(x0_student.shape[1:]))], dim=1)
        if sum_over_shards is not None:
            sums = sum_over_shards(sums)
        loss, slope, zeroed = form.loss_and_slope(sums)
    known: Tensor
    if chosen == "reference":
        known = reference.with_gradient(x0_student, loss, slope, direction)
    else:
        known = fused.with_gradient(x0_student, loss, slope, direction, chosen)
    return (known, zeroed) if return_zeroed else known


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
    check("x0_fake", x0_fake, x0_student=x0_student)
    check_per_sample(x0_fake, sigma=sigma)
    check_preconditioned("x0_fake", x0_fake, preconditioned)
    check_mask(x0_fake, frame_mask)
    if weighting not in ("eps", "x0", "trigflow"):
        raise ValueError(f"weighting must be 'eps', 'x0' or 'trigflow', not {weighting!r}")
    x_t, coefficients = x_t_and_coefficients(preconditioned)
    latents = (x0_fake, x0_student, x_t)
    chosen = registry.pick("fake_score_loss", backend, *(t for t in latents if t is not None))
    if chosen == "reference":
        fake, target, x_t = reference.wide(x0_fake, x0_student.detach(), x_t)
        error = reference.squared_error(fake, target, x_t, coefficients, frame_mask)
    else:
        error = fused.squared_error(x0_fake, x0_student, x_t, coefficients, frame_mask, chosen)
    total, count = error.detach(), error.new_full(error.shape, math.prod(x0_fake.shape[1:]))
    if sum_over_shards is not None:
        total, count = sum_over_shards(torch.stack([total, count], dim=1)).unbind(1)
    precision = sigma.to(error.dtype).square().reciprocal()
    weight = {"eps": precision, "x0": torch.ones_like(precision), "trigflow": 1 + precision}[
        weighting
    ] / count
    return weight * (error + (total - error.detach()))
