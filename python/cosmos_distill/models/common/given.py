"""How leading frames are given to a network, in the two styles of the Cosmos models.

In both, the network finds them in its input and marked in a mask channel. What differs is the noise on them
and what the network is told of it. Which style is whose, its family says.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cosmos_distill import diffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cosmos_distill.diffusion import Given, Schedule

AUGMENT_SIGMA = 0.001
"""Noise level at which Transfer1 shows given frames."""


def augmented_frames(config: Any, schedule: Schedule, mask: Tensor, clean: Tensor, times: Tensor) -> Given:
    """Transfer1: at sigma 0.001 with always the same noise, scaled by that level's c_in, while the network is
    told the level of the sample. A sample whose sigma is not above 0.001 has no given frames."""
    import torch

    mask = mask & diffusion.per_sample(schedule.to_sigma(times) > AUGMENT_SIGMA)
    fixed = augment_noise(clean.shape[1:], clean.device).to(clean.dtype)
    exact = schedule.from_sigma(torch.tensor(AUGMENT_SIGMA, dtype=torch.float64))
    alpha, sigma = (float(factor) for factor in schedule.noising(exact))
    c_in = schedule.precondition(schedule.from_sigma(clean.new_full((1,), AUGMENT_SIGMA))).c_in
    c_in = c_in.to(torch.promote_types(clean.dtype, torch.float32))
    return diffusion.Given(mask, c_in * (alpha * clean + sigma * fixed), times)


def clean_frames(config: Any, schedule: Schedule, mask: Tensor, clean: Tensor, times: Tensor) -> Given:
    """Predict2.5 (Video2World): without noise, in units of sigma_data, and with the sizes'
    ``clean_condition_times`` the network is told a noise level of 1e-4 on them."""
    if config.clean_condition_times:
        per_frame = times if times.ndim == 2 else times[:, None]
        times = per_frame.masked_fill(mask[:, 0, :, 0, 0], schedule.clean_time)
    return diffusion.Given(mask, clean / schedule.config.sigma_data, times)


@lru_cache(maxsize=4)
def augment_noise(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Transfer1's noise on given frames, [C, T, H, W] fp32: the same for every call and sample.

    ``numpy.random.RandomState(1).standard_normal`` over the whole latent, as the official code has it
    at its batch of one.
    """
    import numpy
    import torch

    values = numpy.random.RandomState(1).standard_normal(tuple(shape)).astype("float32")
    return torch.from_numpy(values).to(device)
