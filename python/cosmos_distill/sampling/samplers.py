"""Drawing clips: the same few lines for generation, grids, evaluation and the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from cosmos_distill.config import ClipFrames, FewStep, Guidance
from cosmos_distill.diffusion import Schedule, TeacherSampler, few_step
from cosmos_distill.methods.denoiser import Denoiser, guided
from cosmos_distill.randomness import Noise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch


def evaluations(calls: int, guidance: Guidance) -> int:
    """Network evaluations per clip in ``calls`` denoise calls: 36 with guidance are 72."""
    return calls * (1 if guidance.as_added().scale == 0 else 2)


def noise_of(seed: int, name: str, batch: Batch) -> Tensor:
    """Unit Gaussian noise [B, C, T, H, W]; that of a sample depends on seed, name and its index only."""
    draw = Noise(seed, 0, batch.first, len(batch))
    return draw.normal(name, tuple(batch.latents.shape[1:]), batch.latents.device)


def frames_of(condition_frames: ClipFrames, clips: Sequence[int]) -> Tensor | None:
    """How many leading latent frames each of these clips is given, integers [B]; None: none at all."""
    if not any(condition_frames):
        return None
    return torch.tensor([condition_frames[clip % len(condition_frames)] for clip in clips])


@torch.no_grad()
def many_steps(
    network: nn.Module,
    schedule: Schedule,
    batch: Batch,
    noise: Tensor,
    guidance: Guidance,
    sampler: TeacherSampler,
    steps: int,
    frames: Tensor | None = None,
    on_evaluation: Callable[[], None] | None = None,
) -> Tensor:
    """Latents [B, C, T, H, W] of a teacher, in ``sampler.calls(steps)`` guided evaluations.

    Args:
        sampler: The one of the network's family.
        frames: Leading latent frames given to the network clean, [B]; None gives none.
        on_evaluation: Called before each denoise, for progress; it may raise to stop.
    """
    denoise = guided(Denoiser(network, schedule), batch.given(frames), guidance)

    def watched(x_t: Tensor, t: Tensor) -> Tensor:
        if on_evaluation is not None:
            on_evaluation()
        return denoise(x_t, t)

    return sampler.sample(watched, noise, schedule, steps)


@torch.no_grad()
def few_steps(
    network: nn.Module,
    schedule: Schedule,
    batch: Batch,
    noise: Tensor,
    sampler: FewStep,
    guidance: Guidance | None = None,
    frames: Tensor | None = None,
    seed: int = 0,
    stream: str = "student",
) -> Tensor:
    """Latents [B, C, T, H, W] of the student's sampler; with ``guidance``, a teacher's, in twice the
    evaluations. ``frames`` as in :func:`many_steps`; ``seed`` is of fresh noise between steps, and
    ``stream`` its name."""
    off = Guidance(0.0, "added")
    denoise = guided(Denoiser(network, schedule), batch.given(frames), guidance or off)
    fresh = (lambda i: noise_of(seed, f"{stream}_{i}", batch)) if sampler.fresh_noise else None
    return few_step(denoise, noise, schedule.student_times(sampler.steps), schedule.noising, fresh=fresh)
