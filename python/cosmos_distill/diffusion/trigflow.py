"""The angle of TrigFlow and its ties to EDM's sigma, rectified flow's tau, and networks trained in either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.config import TrigFlow
from cosmos_distill.diffusion.precondition import CLEAN_SIGMA, Preconditioning, over_latent

STUDENT_STEPS = 4
"""Steps of the student's grid. A student of fewer steps is evaluated at the first times of this one."""


@dataclass(frozen=True)
class TrigFlowSchedule:
    """x_t = cos(t) * x_0 / sd + sin(t) * eps, t in [0, pi/2] (Lu and Song 2024, arXiv 2410.11081).

    x_t is EDM's x_0 + sigma * eps times cos(t) / sd, with sigma = sd * tan(t), and rectified flow's
    (1 - tau) * x_0 + tau * eps times (cos(t) + sd * sin(t)) / sd, with tau = sigma / (1 + sigma).

    Everything is computed in fp64. Conversions return fp64; coefficients come back in the dtype of t, but
    not below fp32. t = pi/2 is meant exactly, whichever way its dtype rounds it: the cosine is 0 there,
    sigma infinite and tau 1.
    """

    config: TrigFlow = field(default_factory=TrigFlow)

    @property
    def clean_time(self) -> float:
        """Angle of given frames: sigma 1e-4."""
        return float(self.from_sigma(CLEAN_SIGMA))

    def to_sigma(self, t: Tensor | float) -> Tensor:
        """EDM noise level of an angle, fp64, 0 to infinity."""
        cos, sin = _cos_sin(t)
        return self.config.sigma_data * sin / cos

    def from_sigma(self, sigma: Tensor | float) -> Tensor:
        """Angle of an EDM noise level from 0 to infinity, fp64."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return torch.atan2(sigma, torch.full_like(sigma, self.config.sigma_data))

    def to_tau(self, t: Tensor | float) -> Tensor:
        """Rectified-flow time of an angle, fp64, 0 to 1."""
        cos, sin = _cos_sin(t)
        return self.config.sigma_data * sin / (cos + self.config.sigma_data * sin)

    def from_tau(self, tau: Tensor | float) -> Tensor:
        """Angle of a rectified-flow time from 0 to 1, fp64."""
        tau = torch.as_tensor(tau, dtype=torch.float64)
        return torch.atan2(tau, self.config.sigma_data * (1 - tau))

    def shift_time(self, u: Tensor | float) -> Tensor:
        """Angle, fp64, of the uniform u in [0, 1] under the shift: how noise levels are drawn in training."""
        u = torch.as_tensor(u, dtype=torch.float64)
        shift = self.config.shift
        return self.from_tau(shift * u / (1 + (shift - 1) * u))

    def noising(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cos(t) / sd, sin(t)), the factors of x_0 and eps in x_t, each of t's shape, at least fp32."""
        cos, sin = _cos_sin(t)
        dtype = torch.promote_types(t.dtype, torch.float32)
        return (cos / self.config.sigma_data).to(dtype), sin.to(dtype)

    def precondition(self, t: Tensor) -> Preconditioning:
        """Coefficients at the angles ``t``, [B] or [B, T].

        ``rectified_flow``: the network predicts eps - x_0 from rectified flow's x and tau.
        ``edm``: it predicts what EDM's networks do, and c_noise = ln(sigma) / 4. That is finite at both ends:
        at pi/2 sigma is sigma_data times the tangent of fp64's pi/2, 1.6e16, as in the official code, and
        2^-53 at 0.
        """
        cos, sin = _cos_sin(t)
        sd = self.config.sigma_data
        if self.config.form == "rectified_flow":
            total = cos + sd * sin
            tau = sd * sin / total
            values = (sd / total, -tau, sd / total, tau)
        else:
            sigma = self.to_sigma(t).clamp(2.0**-53, sd * math.tan(math.pi / 2))
            values = (sd * cos, sd * sin, torch.ones_like(cos), sigma.log() / 4)
        dtype = torch.promote_types(t.dtype, torch.float32)
        c_skip, c_out, c_in, c_noise = (value.to(dtype) for value in values)
        return Preconditioning(over_latent(c_skip), over_latent(c_out), over_latent(c_in), c_noise)

    def loss_weight(self, t: Tensor) -> Tensor:
        """1 / c_out^2 at ``t`` > 0, of its shape: the network's own error weighs 1 at every level. In the
        rectified-flow form, times (x_0 - denoised)^2, this is the error of the velocity eps - x_0."""
        c_out = self.precondition(t).c_out.reshape(t.shape)
        return c_out.square().reciprocal()

    def student_times(self, steps: int | Sequence[float] = STUDENT_STEPS) -> list[float]:
        """Angles at which a student of ``steps`` evaluations is evaluated, fp64, from pi/2 down.

        Uniform in u = 1, 3/4, 1/2, 1/4 under the shift, i.e. pi/2, atan 15, atan 5 and atan 5/3 at shift 5,
        sd 1. Fewer steps take the first of these; more are uniform in u by themselves, like the teacher's.
        A list of angles is taken as it is.

        Raises:
            ValueError: no step, or a list that does not decrease within (0, pi/2].
        """
        if isinstance(steps, int):
            _require_a_step(steps)
            return self.teacher_times(max(steps, STUDENT_STEPS))[:steps]
        times = [float(t) for t in steps]
        if not times or times[0] > math.pi / 2 or times[-1] <= 0 or any(a <= b for a, b in pairwise(times)):
            raise ValueError(f"times {times} must decrease strictly from at most pi/2 and stay above 0")
        return times

    def teacher_times(self, steps: int) -> list[float]:
        """Angles of ``steps`` evaluations, fp64: uniform in u = 1, 1 - 1/steps, ... under the shift.

        Raises:
            ValueError: ``steps`` below 1.
        """
        _require_a_step(steps)
        return self.shift_time(torch.arange(steps, 0, -1, dtype=torch.float64) / steps).tolist()

    def to_dict(self) -> dict[str, Any]:
        """What an export stores, so that its sampler is the one of training."""
        return {"kind": "trigflow", **asdict(self.config)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrigFlowSchedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: the stored schedule is not a TrigFlow schedule.
        """
        rest = dict(values)
        if (kind := rest.pop("kind", None)) != "trigflow":
            raise ValueError(
                f"schedule kind {kind!r} is not 'trigflow': the file was written for another sampler"
            )
        return cls(TrigFlow(**rest))


def _cos_sin(t: Tensor | float) -> tuple[Tensor, Tensor]:
    """fp64 cosine and sine; pi/2, whichever way the dtype of t rounds it, gives (0, 1)."""
    t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    at_end = t >= torch.tensor(math.pi / 2, dtype=t.dtype, device=t.device)
    wide = t.to(torch.float64)
    return wide.cos().masked_fill(at_end, 0.0), wide.sin().masked_fill(at_end, 1.0)


def _require_a_step(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
