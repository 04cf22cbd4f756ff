"""Where a method draws the noise levels that it trains at, in the coordinate of its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cosmos_distill import diffusion
from cosmos_distill.config import EDM, Setting, TrigFlow
from cosmos_distill.ranges import Checked, Problem, Range

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import EDMSchedule, Schedule, TrigFlowSchedule
    from cosmos_distill.randomness import Noise

FIRST_LEVEL, LAST_LEVEL = 20, 980
"""Levels of the 1000-point grid that are drawn, both included: the middle 96 %."""


@dataclass(frozen=True)
class Levels(Checked):
    """Base of the ways to draw levels, each in the coordinate of one schedule."""

    coordinate: ClassVar[type[EDM] | type[TrigFlow]]

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """Levels are those of a schedule."""
        if not isinstance(setting.schedule, self.coordinate):
            yield "levels", self._refusal()

    def _refusal(self) -> str:
        others = "Grid or LogNormal" if self.coordinate is TrigFlow else "ShiftedTime"
        return f"{type(self).__name__} belongs to {self.coordinate.__name__}: take {others} here"


@dataclass(frozen=True)
class Grid(Levels):
    """Uniform over the points of a grid of EDM levels, as DMD2 on Transfer1 draws them."""

    coordinate = EDM

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
class LogNormal(Levels):
    """Log-normal EDM levels (Karras et al. 2022, arXiv 2206.00364), as Transfer1's teacher was trained."""

    coordinate = EDM
    mean: Annotated[float, Range(-10, 10)] = 0.0
    """Of log sigma."""
    std: Annotated[float, Range(0, 5)] = 1.4
    """Of log sigma."""
    adjust_video_noise: bool = True
    """Multiply sigma by sqrt(latent frames): frames are redundant, so video needs more noise."""

    def draw(self, batch: Batch, schedule: Schedule, noise: Noise) -> Tensor:
        """sigma of each sample, [B], in the latents' dtype."""
        _edm(schedule, self)
        sigma = (self.mean + self.std * noise.normal("sigma", ())).exp().to(batch.latents)
        return _adjusted(sigma, batch, self.adjust_video_noise)


@dataclass(frozen=True)
class ShiftedTime(Levels):
    """Rectified-flow times under the shift of the TrigFlow schedule, as angles: Predict2.5."""

    coordinate = TrigFlow

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


def _edm(schedule: Schedule, levels: Levels) -> EDMSchedule:
    if not isinstance(schedule, diffusion.EDMSchedule):
        raise ValueError(f"levels: {levels._refusal()}")
    return schedule


def _trigflow(schedule: Schedule, levels: Levels) -> TrigFlowSchedule:
    if not isinstance(schedule, diffusion.TrigFlowSchedule):
        raise ValueError(f"levels: {levels._refusal()}")
    return schedule
