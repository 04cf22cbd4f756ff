"""How leading frames are given to a network, in the two styles of the Cosmos models.

In both, the network finds them in its input and marked in a mask channel. What differs is the noise on them
and what the network is told of it. The schedule decides: a network under EDM is Transfer1's, one under
TrigFlow Predict2.5's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cosmos_distill import diffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cosmos_distill.diffusion import EDMSchedule, Schedule, TrigFlowSchedule

AUGMENT_SIGMA = 0.001
"""Noise level at which Transfer1 shows conditioning frames."""


class Given(NamedTuple):
    """Frames as the network gets them."""

    mask: Tensor
    """True on given frames, bool [B, 1, T, 1, 1]."""
    latent: Tensor
    """What stands in the network's input there, [B, C, T, H, W]."""
    times: Tensor
    """Noise coordinate that the network is told, [B], or [B, T] if given frames have their own."""


def give_frames(network: nn.Module, schedule: Schedule, mask: Tensor, clean: Tensor, times: Tensor) -> Given:
    """Put the frames of ``clean`` [B, C, T, H, W] where ``mask`` is, in the style of ``schedule``."""
    if isinstance(schedule, diffusion.TrigFlowSchedule):
        config: Any = network.config
        return _clean_frames(schedule, mask, clean, times, own_times=config.clean_condition_times)
    return _augmented_frames(schedule, mask, clean, times)


def _augmented_frames(schedule: EDMSchedule, mask: Tensor, clean: Tensor, sigma: Tensor) -> Given:
    """Transfer1: at sigma 0.001 with always the same noise, scaled by that level's c_in, while the network is
    told the level of the sample. A sample whose sigma is not above 0.001 has no given frames."""
    mask = mask & diffusion.per_sample(sigma > AUGMENT_SIGMA)
    fixed = augment_noise(clean.shape[1:], clean.device).to(clean.dtype)
    c_in = schedule.precondition(clean.new_full((1,), AUGMENT_SIGMA)).c_in
    return Given(mask, c_in * (clean + AUGMENT_SIGMA * fixed), sigma)


def _clean_frames(
    schedule: TrigFlowSchedule, mask: Tensor, clean: Tensor, times: Tensor, *, own_times: bool
) -> Given:
    """Predict2.5 (Video2World): without noise, in units of sigma_data, and with ``own_times`` the network is
    told a noise level of 1e-4 on them."""
    if own_times:
        per_frame = times if times.ndim == 2 else times[:, None]
        times = per_frame.masked_fill(mask[:, 0, :, 0, 0], schedule.clean_time)
    return Given(mask, clean / schedule.config.sigma_data, times)


@lru_cache(maxsize=4)
def augment_noise(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Transfer1's noise on conditioning frames, [C, T, H, W] fp32: the same for every call and sample.

    ``numpy.random.RandomState(1).standard_normal`` over the whole latent, as the official code has it
    at its batch of one.
    """
    import numpy
    import torch

    values = numpy.random.RandomState(1).standard_normal(tuple(shape)).astype("float32")
    return torch.from_numpy(values).to(device)
