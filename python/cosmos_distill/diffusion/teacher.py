"""Samplers of many steps, by which teachers are sampled. Torch-free until one is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.diffusion.samplers import Denoise


@dataclass(frozen=True)
class TeacherSampler:
    """A sampler of many steps. Which family's teacher takes which, its declaration says."""

    name: str
    sample: Callable[[Denoise, Tensor, Any, int], Tensor]
    """sample(denoise, unit noise [B, ...], schedule, steps) -> x0 [B, ...]"""
    last: int = 0
    """Denoise calls after the last step."""

    def calls(self, steps: int) -> int:
        """Denoise calls of ``steps`` steps."""
        return steps + self.last


def _res_2ab(denoise: Denoise, noise: Tensor, schedule: Any, steps: int) -> Tensor:
    from cosmos_distill.diffusion.samplers import res_2ab

    return res_2ab(denoise, noise * schedule.sigma_max, schedule.sampling_sigmas(steps))


def _euler_rf(denoise: Denoise, noise: Tensor, schedule: Any, steps: int) -> Tensor:
    from cosmos_distill.diffusion.samplers import euler_rf

    return euler_rf(denoise, noise, schedule.teacher_times(steps), schedule.noising)


RES_2AB = TeacherSampler("res_2ab", _res_2ab, last=1)
"""Second order, with a clean denoise after the last step; of networks trained in EDM."""
EULER_RF = TeacherSampler("euler_rf", _euler_rf)
"""First order, along rectified flow; of networks trained in TrigFlow."""
