"""EDM denoising (Karras et al. 2022, arXiv 2206.00364): how a teacher is pre-trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cosmos_distill import diffusion
from cosmos_distill.config import MethodConfig, Optim
from cosmos_distill.methods.base import Method, Networks, Noise, draw_condition, unit_noise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import EDMSchedule


@dataclass(frozen=True, kw_only=True)
class EDMDenoising(MethodConfig):
    """Pre-train a denoiser on clips."""

    p_mean: float = 0.0
    """Mean of log sigma."""
    p_std: float = 1.4
    """Standard deviation of log sigma."""
    adjust_video_noise: bool = True
    """Multiply sigma by sqrt(latent frames): frames are redundant, so video needs more noise."""
    text_dropout: float = 0.2
    """Probability that a sample's text is replaced by the negative text, which trains the
    unconditional branch of guidance."""
    max_condition_frames: int = 2
    """Leading latent frames given clean, uniform in 0..max per sample."""
    student: Optim = field(default_factory=lambda: Optim(lr=2e-3, betas=(0.9, 0.99)))
    """The network being trained."""

    def build(self, networks: Networks, schedule: EDMSchedule, *, seed: int = 0) -> EDMDenoisingMethod:
        """The method over one network."""
        return EDMDenoisingMethod(self, {"student": networks("student")}, schedule)


class EDMDenoisingMethod(Method):
    """Weighted regression of x0 from x0 + sigma * eps."""

    config: EDMDenoising

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """``loss/denoising``: (sigma^2 + sd^2)/(sigma sd)^2 * mean (x0 - denoised)^2, [B].

        Given frames are reproduced exactly, hence add nothing, but count in the mean.
        """
        x0 = batch.latents
        sigma = self.draw_sigma(noise, frames=x0.shape[2], device=x0.device)
        x_t = x0 + diffusion.per_sample(sigma) * unit_noise(batch, noise, "eps")
        dropped = noise.uniform("text_dropout", x0.device) < self.config.text_dropout
        text = batch.negative_text.where(diffusion.per_sample(dropped, 3), batch.text)
        condition = draw_condition(batch, noise, self.config.max_condition_frames).with_text(text)
        denoised = self.denoiser("student")(x_t, sigma, condition)
        loss = self.schedule.loss_weight(sigma) * (denoised - x0).square().flatten(1).mean(1)
        return {"loss/denoising": loss, "total": loss}

    def draw_sigma(self, noise: Noise, frames: int, device: torch.device | str) -> Tensor:
        """Log-normal noise level of each sample, [B]."""
        sigma = (self.config.p_mean + self.config.p_std * noise.normal("sigma", (), device)).exp()
        return sigma * math.sqrt(frames) if self.config.adjust_video_noise else sigma
