"""Knowledge distillation on the teacher's pairs: the first stage of Transfer1's recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cosmos_distill.config import GivesFrames, Optim, Setting
from cosmos_distill.methods.base import Method, Networks, Noise, draw_given_frames
from cosmos_distill.ranges import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import Schedule


@dataclass(frozen=True, kw_only=True)
class KD(GivesFrames):
    """Regress the teacher's clip from the noise it started from. Needs a stage's ``pairs_from``."""

    student: Optim = field(default_factory=lambda: Optim(lr=1e-5, clip_norm=10.0))

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """It regresses stored clips."""
        if not setting.pairs:
            text = "name the stage that generates them in pairs_from, or give a folder with noise/"
            if not setting.recipe:
                text = "give what cosmos_distill.pairs(teacher, ...) returns, or samples with their noise"
            yield "", f"KD learns from pairs: {text}"

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> KDMethod:
        """The method over a student; the teacher is in the pairs."""
        return KDMethod(self, {"student": networks("student")}, schedule)


class KDMethod(Method):
    """One-step regression of stored samples."""

    config: KD

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """``loss/kd``: 0.5 * mean (G(sigma_max * noise) - teacher's latent)^2, [B].

        Given frames add nothing but count in the mean.

        Raises:
            ValueError: the batch has no stored noise.
        """
        if batch.noise is None:
            raise ValueError("KD learns from pairs, and this batch has no noise: each needs its own")
        conditioning = draw_given_frames(batch, noise, self.config.condition_frames)
        x_g = self.sample("student", batch.noise, conditioning)
        loss = 0.5 * (x_g - batch.latents).square().flatten(1).mean(1)
        return {"loss/kd": loss, "total": loss}
