"""Where a method draws the noise levels that it trains at, in the coordinate of its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cosmos_distill import diffusion

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import EDMSchedule, Schedule, TrigFlowSchedule
    from cosmos_distill.methods.base import Noise

FIRST_LEVEL, LAST_LEVEL = 20, 980
"""Levels of the 1000-point grid that are drawn, both included: the middle 96 %."""


@dataclass(frozen=True)
class Grid:
    """Uniform over the points of a grid of EDM levels, as DMD2 on Transfer1 draws them."""

    points: Literal["edm_sampling", "inference"] = "edm_sampling"
    """The teacher's sampling grid, or log-uniform."""
    adjust_video_noise: bool = True
    """Multiply sigma by sqrt(latent frames), as the teacher's training did."""

    def draw(self, batch: Batch, schedule: Schedule, noise: Noise) -> Tensor:
        """sigma of each sample, [B], in the latents' dtype."""
        levels = _edm(schedule, self).training_sigmas(self.points)[FIRST_LEVEL : LAST_LEVEL + 1]
        sigma = levels[noise.integers("sigma", 0, len(levels))].to(batch.latents)
        return _adjusted(sigma, batch, self.adjust_video_noise)


@dataclass(frozen=True)
class LogNormal:
    """Log-normal EDM levels (Karras et al. 2022, arXiv 2206.00364), as Transfer1's teacher was trained."""

    mean: float = 0.0
    """Of log sigma."""
    std: float = 1.4
    """Of log sigma."""
    adjust_video_noise: bool = True
    """Multiply sigma by sqrt(latent frames): frames are redundant, so video needs more noise."""

    def draw(self, batch: Batch, schedule: Schedule, noise: Noise) -> Tensor:
        """sigma of each sample, [B], in the latents' dtype."""
        _edm(schedule, self)
        sigma = (self.mean + self.std * noise.normal("sigma", ())).exp().to(batch.latents)
        return _adjusted(sigma, batch, self.adjust_video_noise)


@dataclass(frozen=True)
class ShiftedTime:
    """Rectified-flow times under the shift of the TrigFlow schedule, as angles: Predict2.5."""

    before_shift: Literal["uniform", "logit_normal"] = "uniform"
    """Of the time: uniform in DMD2, logit-normal in the teacher's training (arXiv 2403.03206)."""

    def draw(self, batch: Batch, schedule: Schedule, noise: Noise) -> Tensor:
        """t of each sample, fp64 [B], above 0 and at most pi/2: no time is rounded."""
        if self.before_shift == "uniform":
            # Within (0, 1]: weights divide by sin t.
            u = 1 - noise.uniform("time", batch.latents.device).double()
        else:
            u = noise.normal("time", (), batch.latents.device).double().sigmoid()
        return _trigflow(schedule, self).shift_time(u)


def _adjusted(sigma: Tensor, batch: Batch, adjust: bool) -> Tensor:
    return sigma * math.sqrt(batch.latents.shape[2]) if adjust else sigma


def _edm(schedule: Schedule, levels: Grid | LogNormal) -> EDMSchedule:
    if not isinstance(schedule, diffusion.EDMSchedule):
        raise ValueError(f"{type(levels).__name__} levels are EDM's: under TrigFlow choose ShiftedTime")
    return schedule


def _trigflow(schedule: Schedule, levels: ShiftedTime) -> TrigFlowSchedule:
    if not isinstance(schedule, diffusion.TrigFlowSchedule):
        raise ValueError("ShiftedTime is TrigFlow's: under EDM choose Grid or LogNormal")
    return schedule
