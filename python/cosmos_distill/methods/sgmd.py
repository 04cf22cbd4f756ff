"""SGMD (arXiv 2605.30116): distribution matching whose student sees through the fake score network, so that
one step of that network for each of the student's is enough.

Phases, rollouts and the fake score network's loss are DMD2's. New is the student's loss: the squared
difference of the two scores (a Fisher divergence) at the student's own sample, whose gradient goes through
the input of the fake score network, less a small correction for what that network still gets wrong. Read from
the paper's page and its public implementation in LightX2V (the trainer ``video_sgmd``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cosmos_distill.config import Steps, Weight
from cosmos_distill.methods.base import Networks
from cosmos_distill.methods.dmd2 import DMD2, DMD2Method
from cosmos_distill.ranges import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.conditioning import Conditioning
    from cosmos_distill.diffusion import Schedule
    from cosmos_distill.methods.denoiser import Features

_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class SGMD(DMD2):
    """Match the distribution of the student's samples to the teacher's by the scores' squared difference."""

    student_update_freq: Steps = 2
    """The student's phase is every step that this divides; as published, every second."""
    gan_weight: Weight = 0.0
    correction_weight: Weight = 0.1
    """Of the fake score network's own error, which is taken off the student's loss."""

    def rules(self) -> Iterator[Problem]:
        """There is a fake score network and nothing but it."""
        yield from super().rules()
        for name in ("ladd", "recon_loss_only"):
            if getattr(self, name):
                yield name, "is another loss than SGMD's: switch it off, or take DMD2"
        if self.gan_weight > 0:
            yield "gan_weight", "SGMD has no discriminator: set it to 0, or take DMD2"

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> SGMDMethod:
        """The method over student, teacher and fake score network."""
        roles = {role: networks(role) for role in ("student", "teacher", "fake_score")}
        return SGMDMethod(self, roles, schedule)


class SGMDMethod(DMD2Method):
    """DMD2's phases with SGMD's loss of the student."""

    config: SGMD

    def judge(
        self, role: str, x_t: Tensor, t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor | None, Features | None]:
        """The role's x0, of the fake score network with the graph to its input."""
        if role == "fake_score":
            return self.denoiser(role)(x_t, t, conditioning), None
        return super().judge(role, x_t, t, conditioning)

    def match(
        self, x_g: Tensor, x0_teacher: Tensor, x0_fake: Tensor, t: Tensor, mask: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss/fisher``: mean of 1/2 (x0_fake - x0_teacher)^2 / n, where n is the sample's mean
        \\|x_g - x0_teacher\\|; ``loss/correction``: mean of 1/2 ((x0_fake - x_g) / s)^2, with the gradient
        (x0_fake - x_g) / s in x0_fake. s is the share of noise in x_t, sigma / (alpha + sigma), rectified
        flow's time; neither n nor what stands in x_g's place has a gradient.
        """
        alpha, sigma = self.schedule.noising(t)
        x_g, x0_teacher = x_g.detach(), x0_teacher.detach()
        size = _mean((x_g - x0_teacher).abs(), mask)
        fisher = _mean(0.5 * (x0_fake - x0_teacher).square(), mask) / (size + _EPS)
        share = (sigma / (alpha + sigma)).to(x_g).clamp_min(_EPS).view(-1, *(1,) * (x_g.ndim - 1))
        error = ((x0_fake - x_g) / share).detach()
        correction = _mean(0.5 * (x0_fake - (x0_fake - error).detach()).square(), mask)
        return {"loss/fisher": fisher, "loss/correction": correction}, {}

    def weights(self) -> dict[str, float]:
        """Of the terms in the student's total."""
        return super().weights() | {"loss/fisher": 1.0, "loss/correction": -self.config.correction_weight}


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over a sample [B, C, T, H, W], in fp32 at least; of the frames that ``mask`` [B, T] keeps."""
    import torch

    values = values.to(torch.promote_types(values.dtype, torch.float32))
    frames = values.mean((1, 3, 4))
    if mask is None:
        return frames.mean(1)
    return (frames * mask).sum(1) / mask.sum(1)


__all__ = ["SGMD", "SGMDMethod"]
