"""Variational score distillation: where a student's samples have to go, and the loss with that gradient."""

from __future__ import annotations

import math
import os
from typing import Literal, overload

import torch
from torch import Tensor

from .. import registry
from ..checks import flag, number
from ..library import derivatives
from . import fused, reference
from .forms import TRANSFER1, VSDForm, Weighed
from .inputs import (
    Preconditioned,
    SumOverShards,
    check,
    check_mask,
    check_preconditioned,
    check_sum,
    x_t_and_coefficients,
)


def vsd_direction(
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
) -> tuple[Tensor, Tensor]:
    """The score difference and its weight, for trainers that send the gradient on by themselves.

    ``weight[b] * direction[b]`` is v of :func:`vsd_loss`, which published code calls the gradient; that of
    the loss is 2 factor / N times as much. Nothing is differentiated.

    Args:
        x0_student: see :func:`vsd_loss` for all of them.

    Returns:
        m (x0_fake - x0_teacher), of x0_student's shape and dtype, and 1 / normaliser of each sample, [B], at
        least fp32. It is 0 where ``form`` leaves a sample out, whose direction may hold NaN: do not multiply.

    Raises:
        ValueError: as :func:`vsd_loss`.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    direction, weighed, _ = _weighed(
        x0_student,
        x0_teacher,
        x0_fake,
        form,
        uncond,
        guidance,
        preconditioned,
        frame_mask,
        sum_over_shards,
        backend,
    )
    return direction.to(x0_student.dtype), weighed.weight


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
    flag("return_zeroed", return_zeroed)
    if backend is None and registry.VARIABLE not in os.environ and derivatives(x0_student):
        backend = "reference"  # the work below is none that is differentiated
    direction, weighed, chosen = _weighed(
        x0_student,
        x0_teacher,
        x0_fake,
        form,
        uncond,
        guidance,
        preconditioned,
        frame_mask,
        sum_over_shards,
        backend,
    )
    known: Tensor
    if chosen == "reference":
        # Forward mode would go on into these.
        loss, slope = weighed.loss.detach(), weighed.slope.detach()
        known = reference.with_gradient(x0_student, loss, slope, direction.detach())
    else:
        known = fused.with_gradient(x0_student, weighed.loss, weighed.slope, direction, chosen)
    return (known, weighed.zeroed) if return_zeroed else known


@torch.no_grad()
def _weighed(
    x0_student: Tensor,
    x0_teacher: Tensor,
    x0_fake: Tensor,
    form: VSDForm,
    uncond: Tensor | None,
    guidance: float,
    preconditioned: Preconditioned | None,
    frame_mask: Tensor | None,
    sum_over_shards: SumOverShards | None,
    backend: str | None,
) -> tuple[Tensor, Weighed, str]:
    """The direction, what its samples come to, and the backend that was picked."""
    if not isinstance(form, VSDForm):
        raise ValueError(f"form must be a VSDForm, not {type(form).__name__}")
    number("guidance", guidance)
    if uncond is None and guidance != 0:
        raise ValueError(f"guidance is {guidance} but uncond is missing: give both or neither")
    check("x0_student", x0_student, x0_teacher=x0_teacher, x0_fake=x0_fake, uncond=uncond)
    check_preconditioned("x0_student", x0_student, preconditioned)
    check_mask(x0_student, frame_mask)
    check_sum(sum_over_shards)
    x_t, coefficients = x_t_and_coefficients(preconditioned)
    latents = (x0_student, x0_teacher, x0_fake, uncond, x_t)
    chosen = registry.pick("vsd_loss", backend, *(t for t in latents if t is not None))
    if chosen == "reference":
        x, teacher, fake, uncond, x_t = reference.wide(*latents)
        direction, sums = reference.vsd(x, teacher, fake, uncond, x_t, guidance, coefficients, frame_mask)
    else:
        direction, sums = fused.vsd(*latents, guidance, coefficients, frame_mask, chosen)
    sums = torch.cat([sums, sums.new_full((sums.shape[0], 1), math.prod(x0_student.shape[1:]))], dim=1)
    if sum_over_shards is not None:
        sums = sum_over_shards(sums)
    return direction, form.weigh(sums), chosen
