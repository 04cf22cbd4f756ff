"""Samplers over a plain callable, so that training, evaluation and an export run the same function."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""denoise(x_t [B, ...], sigma [B]) -> x0 [B, ...]"""


def one_step(denoise: Denoise, noise: Tensor, sigma_max: float) -> Tensor:
    """x0 [B, ...] in a single evaluation from unit ``noise`` [B, ...]: the student's sampler.

    Training's rollout is this very function, and keeps its graph.
    """
    return denoise(noise * sigma_max, noise.new_full((noise.shape[0],), sigma_max))


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
