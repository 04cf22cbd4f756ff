"""Distribution matching distillation in x0 space (Yin et al. 2024, arXiv 2311.18828 and 2405.14867).

With eps_hat = (x_t - x0_hat) / sigma the eps-space formulas of Transfer1 and the x0-space formulas of
Predict2.5 are the same; x0 space needs no division by a small sigma. All means are per sample.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import registry

__all__ = ["FakeScorePrediction", "fake_score_loss", "renoise", "vsd_loss"]

FakeScorePrediction = Literal["eps", "x0"]


def renoise(x0: Tensor, eps: Tensor, sigma: Tensor, *, backend: str | None = None) -> Tensor:
    """``x0 + sigma * eps``, differentiable in x0.

    Args:
        x0: clean latent, [B, ...].
        eps: unit Gaussian noise, same shape.
        sigma: noise level of each sample, [B].
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        x_t, of x0's shape, at least fp32.

    Raises:
        ValueError: a shape does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check(x0, eps=eps)
    _check_levels(sigma, x0)
    out: Tensor = registry.resolve("renoise", backend, x0, eps, sigma)(x0, eps, sigma)
    return out


def vsd_loss(
    x0_student: Tensor,
    x0_teacher: Tensor,
    x0_fake: Tensor,
    floor: float = 1e-5,
    *,
    backend: str | None = None,
) -> Tensor:
    """Variational score distillation: a loss whose gradient is the normalised score difference.

    ``v = (x0_fake - x0_teacher) / max(mean |x0_student - x0_teacher|, floor)`` and, with sg for
    stop-gradient, ``0.5 * mean (x0_student - sg(x0_student - v))^2``: the gradient w.r.t. x0_student is
    v / N, for the N elements of a sample. Equal to Transfer1's ``v = (eps_T - eps_S) / mean |eps - eps_T|``.

    Args:
        x0_student: the student's sample, [B, ...]; the only input that gets a gradient.
        x0_teacher: the (guided) teacher's prediction on the renoised sample, same shape.
        x0_fake: the fake score network's prediction there, same shape.
        floor: smallest normaliser, in units of the latent: where the teacher agrees with the student exactly
            the gradient stays finite.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        ValueError: a shape does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check(x0_student, x0_teacher=x0_teacher, x0_fake=x0_fake)
    serve = registry.resolve("vsd_loss", backend, x0_student, x0_teacher, x0_fake)
    loss: Tensor = serve(x0_student, x0_teacher, x0_fake, floor)
    return loss


def fake_score_loss(
    x0_fake: Tensor,
    x0_student: Tensor,
    sigma: Tensor,
    prediction: FakeScorePrediction = "eps",
    *,
    backend: str | None = None,
) -> Tensor:
    """Denoising loss of the fake score network on the student's samples.

    ``eps``: mean (eps - eps_S)^2 = mean (x0_student - x0_fake)^2 / sigma^2; ``x0``: without the division.

    Args:
        x0_fake: its prediction on the renoised sample, [B, ...].
        x0_student: the student's sample, same shape; gets no gradient.
        sigma: noise level of each sample, [B].
        prediction: which error is averaged.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        The loss of each sample, [B], at least fp32.

    Raises:
        ValueError: a shape does not fit, or ``prediction`` is unknown.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check(x0_fake, x0_student=x0_student)
    _check_levels(sigma, x0_fake)
    if prediction not in ("eps", "x0"):
        raise ValueError(f"prediction must be 'eps' or 'x0', not {prediction!r}")
    serve = registry.resolve("fake_score_loss", backend, x0_fake, x0_student, sigma)
    loss: Tensor = serve(x0_fake, x0_student, sigma, prediction)
    return loss


def _check(like: Tensor, **others: Tensor) -> None:
    for name, value in others.items():
        if value.shape != like.shape:
            raise ValueError(f"{name} must have shape {list(like.shape)}, not {list(value.shape)}")


def _check_levels(sigma: Tensor, x0: Tensor) -> None:
    if sigma.shape != x0.shape[:1]:
        raise ValueError(f"sigma must be [{x0.shape[0]}], one level per sample, not {list(sigma.shape)}")
