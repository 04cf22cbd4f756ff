"""Drawing clips: the same few lines for generation, grids, evaluation and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from cosmos_distill.config import Guidance
from cosmos_distill.diffusion import Schedule, few_step, teacher_sample
from cosmos_distill.methods.base import Noise
from cosmos_distill.methods.denoiser import Condition, Denoiser, guided

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch


def evaluations(steps: int, guidance: Guidance) -> int:
    """Network evaluations per clip of the many-step sampler: 35 steps with guidance are 36 x 2."""
    return (steps + 1) * (1 if guidance.as_added().scale == 0 else 2)


def noise_of(seed: int, name: str, batch: Batch) -> Tensor:
    """Unit Gaussian noise [B, C, T, H, W]; that of a sample depends on seed, name and its index only."""
    draw = Noise(seed, 0, batch.first, len(batch))
    return draw.normal(name, tuple(batch.latents.shape[1:]), batch.latents.device)


@torch.no_grad()
def many_steps(
    network: nn.Module,
    schedule: Schedule,
    batch: Batch,
    noise: Tensor,
    guidance: Guidance,
    steps: int,
    frames: Tensor | None = None,
    on_evaluation: Callable[[], None] | None = None,
) -> Tensor:
    """Latents [B, C, T, H, W] of the teacher's sampler in ``steps`` + 1 guided evaluations.

    Args:
        frames: Leading latent frames given to the network clean, [B]; None gives none.
        on_evaluation: Called before each denoise, for progress; it may raise to stop.
    """
    denoise = guided(
        Denoiser(network, schedule), Condition.from_batch(batch, frames), batch.negative_text, guidance
    )

    def watched(x_t: Tensor, sigma: Tensor) -> Tensor:
        if on_evaluation is not None:
            on_evaluation()
        return denoise(x_t, sigma)

    return teacher_sample(watched, noise, schedule, steps)


@torch.no_grad()
def single_step(
    network: nn.Module, schedule: Schedule, batch: Batch, noise: Tensor, guidance: Guidance | None = None
) -> Tensor:
    """Latents [B, C, T, H, W] of the student's sampler; with ``guidance``, a teacher's, in two calls."""
    off = Guidance(0.0, "added")
    denoise = guided(
        Denoiser(network, schedule), Condition.from_batch(batch), batch.negative_text, guidance or off
    )
    return few_step(denoise, noise, schedule.student_times(1), schedule.noising)
