"""Samplers over a plain callable, so that training, evaluation and an export run the same function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""denoise(x_t [B, ...], t [B]) -> x0 [B, ...], t in the noise coordinate of the schedule"""
Noising = Callable[[Tensor], tuple[Tensor, Tensor]]
"""noising(t) -> factors of x_0 and eps in x_t: the method of that name of a schedule"""


def few_step(
    denoise: Denoise,
    noise: Tensor,
    times: Sequence[float],
    noising: Noising,
    *,
    fresh: Callable[[int], Tensor] | None = None,
    last_gradient_only: bool = False,
) -> Tensor:
    """The student's sampler: denoise, noise again to the next time, and so on; with one time, one denoise.

    Returns x0 of the last evaluation. Training's backward simulation of n steps is this very function with
    ``times[:n]``, so that an intermediate prediction of a longer run is what it learns on.

    Args:
        denoise: x0 prediction; called once per time with t [B] in fp64, so that no time is rounded.
        noise: unit Gaussian noise, [B, ...]; the state is kept in at least fp32.
        times: strictly decreasing, the first one near pure noise (a schedule's ``student_times``).
        noising: the schedule's.
        fresh: ``fresh(i)``, unit noise like ``noise`` to be added before evaluation i = 1, 2, ... (Yin et al.
            2024, arXiv 2405.14867); None adds ``noise`` again every time, as Predict2.5 does.
        last_gradient_only: keep no graph of any evaluation but the last.

    Raises:
        ValueError: times not decreasing, or none.
    """
    _require_decreasing(times)
    eps = noise.to(torch.promote_types(noise.dtype, torch.float32))
    x = _factors(noising, times[0])[1] * eps
    for i, t in enumerate(times[:-1], 1):
        with torch.no_grad() if last_gradient_only else nullcontext():
            x0 = denoise(x, _level(t, x))
            alpha, sigma = _factors(noising, times[i])
            x = alpha * x0 + sigma * (eps if fresh is None else fresh(i).to(eps))
    return denoise(x, _level(times[-1], x))


def euler_rf(denoise: Denoise, noise: Tensor, times: Sequence[float], noising: Noising) -> Tensor:
    """Euler steps of the rectified-flow ODE, first order, in len(times) evaluations: Predict2.5's teacher.

    dx/dtau = (x - x0) / tau in rectified flow's scale. With the noise that the prediction implies,
    eps = (x_t - alpha * x0) / sigma, its Euler step is x_t' = alpha' * x0 + sigma' * eps in any noise
    coordinate, so the state stays in the scale that ``denoise`` expects (DDIM, arXiv 2010.02502). The step
    from the last time to 0 gives x0 itself.

    Args:
        denoise: x0 prediction; called once per time with t [B] in fp64.
        noise: unit Gaussian noise, [B, ...]; integrated in at least fp32.
        times: strictly decreasing, the first one near pure noise (a schedule's ``teacher_times``).
        noising: the schedule's.

    Raises:
        ValueError: times not decreasing, or none.
    """
    _require_decreasing(times)
    x = _factors(noising, times[0])[1] * noise.to(torch.promote_types(noise.dtype, torch.float32))
    for t, following in pairwise(times):
        x0 = denoise(x, _level(t, x))
        (alpha, sigma), (next_alpha, next_sigma) = _factors(noising, t), _factors(noising, following)
        x = (next_sigma / sigma) * x + (next_alpha - next_sigma * alpha / sigma) * x0
    return denoise(x, _level(times[-1], x))


def _level(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=torch.float64, device=x.device)


def _factors(noising: Noising, t: float) -> tuple[float, float]:
    alpha, sigma = noising(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def _require_decreasing(times: Sequence[float]) -> None:
    if not times or times[-1] <= 0 or any(a <= b for a, b in pairwise(times)):
        raise ValueError(f"times {list(times)} must be positive and strictly decreasing")


def res_2ab(denoise: Denoise, x_T: Tensor, sigmas: Tensor) -> Tensor:
    """The teacher's sampler: second-order multistep exponential integrator, in len(sigmas) evaluations.

    With lambda = -log sigma the probability-flow ODE is dx/dlambda = x0(x) - x. Each step integrates the
    linear part exactly and x0 as the line through the last two predictions (Adams-Bashforth; the RES
    solver of Zhang et al. 2023, arXiv 2308.02157); the first step has one prediction only and is Euler's.
    A last evaluation at the lowest level returns its clean prediction.

    Args:
        denoise: x0 prediction; called once per level with sigma [B] in x_T's dtype.
        x_T: start, unit noise times sigmas[0], [B, ...]; integrated in at least fp32.
        sigmas: strictly decreasing positive levels, [steps + 1].

    Raises:
        ValueError: levels not decreasing or not positive.
    """
    levels = [float(sigma) for sigma in sigmas]
    if levels[-1] <= 0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError("sigmas must be positive and strictly decreasing, as sampling_sigmas() gives them")
    x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))
    slope: Tensor | float = 0.0
    previous: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(levels):
        x0 = denoise(x, x.new_full((x.shape[0],), sigma))
        h = math.log(sigma / following)
        if previous is not None:
            slope = (x0 - previous[0]) / math.log(previous[1] / sigma)
        # x(h) = exp(-h) x + integral over 0..h of exp(tau - h) (x0 + tau * slope)
        gain = -math.expm1(-h)
        x = (1 - gain) * x + gain * x0 + (h - gain) * slope
        previous = x0, sigma
    return denoise(x, x.new_full((x.shape[0],), levels[-1]))
