"""Denoising: how a teacher is pre-trained.

Under an EDM schedule this is the weighted regression of Karras et al. 2022 (arXiv 2206.00364), under
TrigFlow over rectified flow the regression of the velocity eps - x0 (arXiv 2209.03003): in both the
network's own error weighs 1 at every noise level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cosmos_distill import ops
from cosmos_distill.config import GivesFrames, Optim, Setting, Share
from cosmos_distill.methods.base import (
    Method,
    Networks,
    Noise,
    draw_given_frames,
    unit_noise,
)
from cosmos_distill.methods.levels import LogNormal, ShiftedTime
from cosmos_distill.ranges import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import Schedule


@dataclass(frozen=True, kw_only=True)
class Denoising(GivesFrames):
    """Pre-train a denoiser on clips."""

    levels: LogNormal | ShiftedTime = field(default_factory=LogNormal)
    """Where noise levels are drawn."""
    text_dropout: Share = 0.2
    """Probability that a sample's text is replaced by the negative text, which trains the
    unconditional branch of guidance."""
    start: Literal["teacher"] | None = None
    """Go on from the teacher's weights, those shipped or ``--teacher``, instead of fresh ones: what a run
    whose checkpoints are gone goes on from."""
    condition_frames: tuple[Share, ...] = (1.0,)
    student: Optim = field(default_factory=lambda: Optim(lr=2e-3, betas=(0.9, 0.99)))
    """The network being trained."""

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """Levels are those of a schedule."""
        return self.levels.misfits(setting)

    @property
    def pretrains(self) -> bool:
        """What it trains is sampled in many steps, as a teacher is."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Only to go on from it."""
        return self.start == "teacher"

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> DenoisingMethod:
        """The method over one network."""
        return DenoisingMethod(self, {"student": networks("student")}, schedule)


class DenoisingMethod(Method):
    """Weighted regression of x0 from its noisy version."""

    config: Denoising

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """``loss/denoising``: mean (x0 - denoised)^2 / c_out^2, [B].

        Given frames are reproduced exactly, hence add nothing, but count in the mean.
        """
        x0 = batch.latents
        t = self.config.levels.draw(batch, self.schedule, noise)
        alpha, sigma = self.schedule.noising(t)
        x_t = ops.renoise(x0, unit_noise(batch, noise, "eps"), sigma.to(x0), alpha=alpha.to(x0))
        conditioning = draw_given_frames(batch, noise, self.config.condition_frames)
        if self.config.text_dropout:
            dropped = noise.uniform("text_dropout", x0.device) < self.config.text_dropout
            conditioning = conditioning.dropped(dropped)
        denoised = self.denoiser("student")(x_t, t, conditioning)
        weight = self.schedule.loss_weight(t).to(x0)
        loss = weight * (denoised - x0).square().flatten(1).mean(1)
        return {"loss/denoising": loss, "total": loss}
