"""The sampler of few-step students, in the place of a scheduler in diffusers' pipelines.

    pipe = Cosmos2_5_PredictBasePipeline.from_pretrained("student", ...)
    pipe.scheduler = FewStepScheduler.from_pretrained("student", subfolder="few_step")
    pipe(prompt, guidance_scale=0.0, num_inference_steps=4)

It draws what :func:`cosmos_distill.diffusion.few_step` draws, which training simulated: at every time the
network predicts the clip, and the noise that the clip began with is added again for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

__all__ = ["FewStepScheduler"]

TIMES = 1000
"""``timesteps`` count from here to 0, as other schedulers of rectified flow have it."""


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """Denoise and add noise again at given times of rectified flow, for networks that predict its velocity
    eps - x_0 (Yin et al. 2024, arXiv 2405.14867; in Predict2.5 with the same noise every time).

    Args:
        times: Rectified-flow times of the evaluations, decreasing from 1, which is pure noise.
        fresh_noise: Add fresh noise between evaluations instead of that which the clip began with.

    Raises:
        ValueError: the times do not decrease from 1 and stay above 0.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, times: Sequence[float] = (1.0,), fresh_noise: bool = False) -> None:
        falling = all(a > b for a, b in pairwise(times))
        if not times or times[0] != 1 or times[-1] <= 0 or not falling:
            raise ValueError(f"times {list(times)} must decrease from 1, which is noise, and stay above 0")
        self.set_timesteps(len(times))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Begin a clip. Fewer steps than the student was trained for are the first of them.

        Raises:
            ValueError: more steps than it was trained for, or none.
        """
        times = list(self.config.times)
        if not 1 <= num_inference_steps <= len(times):
            raise ValueError(
                f"num_inference_steps {num_inference_steps}: the student was trained for {len(times)}, so "
                f"choose from 1 to {len(times)}"
            )
        chosen = times[:num_inference_steps]
        self.sigmas = torch.tensor([*chosen, 0.0], dtype=torch.float32, device=device)
        self.timesteps = torch.tensor([t * TIMES for t in chosen], dtype=torch.float32, device=device)
        self.num_inference_steps = num_inference_steps
        self._times = [*chosen, 0.0]
        self._step = 0
        self._noise: Tensor | None = None

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next time, [B, ...] in its dtype, but at least fp32 within.

        Args:
            model_output: Velocity at the sample, [B, ...].
            timestep: Not read: steps follow each other.
            sample: State at this time, [B, ...]; that of the first step is the noise.
            generator: Of fresh noise.
        """
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if self._noise is None:
            self._noise = sample.to(dtype)
        now, following = self._times[self._step : self._step + 2]
        x0 = sample.to(dtype) - now * model_output.to(dtype)
        self._step += 1
        if following == 0:
            result = x0
        else:
            noise = self._noise
            if self.config.fresh_noise:
                noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=dtype)
            result = (1 - following) * x0 + following * noise
        result = result.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)
