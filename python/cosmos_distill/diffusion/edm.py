"""Noise levels of EDM and the preconditioning that ties a network to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cosmos_distill.config import EDM
from cosmos_distill.diffusion.precondition import CLEAN_SIGMA, Preconditioning, over_latent

SigmaSchedule = Literal["edm_sampling", "inference"]

GRID_POINTS = 1000
"""Points of a grid of training noise levels."""
INFERENCE_FLOOR = 2e-4
"""Lower end (excluded) of the ``inference`` grid of Transfer1."""


@dataclass(frozen=True)
class EDMSchedule:
    """x_t = x_0 + sigma * eps with the preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1).

    Everything is computed in fp32, or in fp64 where sigma is fp64. The official Transfer1 code casts
    the coefficients to bf16, which at sigma near 0.01 leaves an error of about 0.15 in eps.
    """

    config: EDM = field(default_factory=EDM)

    @property
    def sigma_max(self) -> float:
        """Where a sampler, and the one-step student, starts."""
        return self.config.sigma_max

    @property
    def clean_time(self) -> float:
        """Noise level that a network is told for frames that it is given clean."""
        return CLEAN_SIGMA

    def to_sigma(self, sigma: Tensor) -> Tensor:
        """The noise level of a coordinate of this schedule, which is the coordinate."""
        return sigma

    def from_sigma(self, sigma: Tensor) -> Tensor:
        """The coordinate of a noise level, which is the level."""
        return sigma

    def precondition(self, sigma: Tensor) -> Preconditioning:
        """Coefficients at ``sigma`` > 0, [B] or [B, T], never in less than fp32."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        sd = self.config.sigma_data
        total = sigma.square() + sd**2
        return Preconditioning(
            c_skip=over_latent(sd**2 / total),
            c_out=over_latent(sigma * sd * total.rsqrt()),
            c_in=over_latent(total.rsqrt()),
            c_noise=sigma.log() / 4,
        )

    def noising(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(1, sigma), the factors of x_0 and eps in x_t, each of ``sigma``'s shape, at least fp32."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        return torch.ones_like(sigma), sigma

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + sd^2) / (sigma * sd)^2 = 1 / c_out^2, [B]: the network's own error weighs 1 at
        every level (table 1, last row)."""
        sd = self.config.sigma_data
        return (sigma.square() + sd**2) / (sigma * sd).square()

    def sampling_sigmas(self, steps: int) -> Tensor:
        """Karras grid of ``steps`` + 1 fp64 levels from sigma_max down to sigma_min (eq. 5, without the
        closing 0: the samplers end with a clean denoise at sigma_min instead).

        Raises:
            ValueError: ``steps`` below 1.
        """
        if steps < 1:
            raise ValueError(f"a sampling grid needs at least one step, not {steps}")
        return self._karras(steps + 1)

    def student_times(self, steps: int = 1) -> list[float]:
        """Levels at which a student of ``steps`` evaluations is evaluated: sigma_max alone for one.

        Raises:
            ValueError: ``steps`` below 1.
        """
        return self.sampling_sigmas(steps)[:-1].tolist()

    def training_sigmas(self, schedule: SigmaSchedule) -> Tensor:
        """The 1000 fp64 levels among which DMD2 draws.

        ``edm_sampling``: the Karras grid, from sigma_max down to sigma_min.
        ``inference``: log-uniform, from just above 0.0002 up to sigma_max.

        Raises:
            ValueError: another name.
        """
        if schedule == "edm_sampling":
            return self._karras(GRID_POINTS)
        if schedule == "inference":
            ratio = self.sigma_max / INFERENCE_FLOOR
            return INFERENCE_FLOOR * ratio ** (_steps(1, GRID_POINTS) / GRID_POINTS)
        raise ValueError(f"unknown sigma schedule {schedule!r}: choose 'edm_sampling' or 'inference'")

    def to_dict(self) -> dict[str, Any]:
        """What an export stores, so that its sampler is the one of training."""
        return {"kind": "edm", **asdict(self.config)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EDMSchedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: the stored schedule is not an EDM schedule.
        """
        rest = dict(values)
        if (kind := rest.pop("kind", None)) != "edm":
            raise ValueError(f"schedule kind {kind!r} is not 'edm': the file was written for another sampler")
        return cls(EDM(**rest))

    def _karras(self, points: int) -> Tensor:
        root = 1 / self.config.rho
        high, low = self.config.sigma_max**root, self.config.sigma_min**root
        return (high + _steps(0, points - 1) / (points - 1) * (low - high)) ** self.config.rho


def _steps(first: int, last: int) -> Tensor:
    return torch.arange(first, last + 1, dtype=torch.float64)
