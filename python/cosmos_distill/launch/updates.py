"""What one update of the student costs in GPU-seconds, critics' steps included, from counted work."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch

from cosmos_distill import diffusion, models
from cosmos_distill.config import EDM, MethodConfig, TrigFlow
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.launch.cost import Count, count_step
from cosmos_distill.launch.devices import Gpu
from cosmos_distill.methods import base
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.models.common.config import DiTConfig

ADAMW = 30
"""Bytes a parameter of a bf16 network with fp32 masters: the gradient is read (4), master (8) and two moments
(16) are read and written, the weight is written (2)."""
EMA = 12
"""The master is read, the average read and written."""


@dataclass(frozen=True)
class Update:
    """One update of the student and the critics' steps until the next."""

    student: Count
    """The student's step, for one clip: the mean over the numbers of evaluations that its samples take."""
    critic: Count
    """A critics' step likewise."""
    critic_steps: int
    optimizer_bytes: float
    """Of all optimisers in this time, for one clip of the global batch."""

    @property
    def work(self) -> Count:
        """All steps together."""
        return self.student + self.critic.times(self.critic_steps)

    def seconds(self, gpu: Gpu) -> float:
        """GPU-seconds for one clip, whatever the number of GPUs it is spread over; what they send each other
        is not in it."""
        return gpu.seconds(self.work) + gpu.streamed(self.optimizer_bytes)


def clip(
    config: DiTConfig, latent: tuple[int, int, int, int], samples: int = 1, *, noise: bool = False
) -> Batch:
    """Clips on the meta device with everything that such a network is told.

    Args:
        latent: (channels, frames, height, width).
        samples: how many.
        noise: each with the noise that it was drawn from, as a teacher's pairs have it.
    """

    def of(*shape: int) -> torch.Tensor:
        return torch.empty(samples, *shape, device="meta")

    text = of(config.text_tokens, config.text_channels)
    hint = of(latent[0] * config.controls, *latent[1:]) if config.controls else None
    told = Conditioning(text=text, negative_text=text, hint=hint, fps=of(), padding_mask=of(1, *latent[2:]))
    return Batch(0, of(*latent), told, noise=of(*latent) if noise else None)


def update(
    config: DiTConfig,
    schedule: EDM | TrigFlow,
    method: MethodConfig,
    latent: tuple[int, int, int, int],
    *,
    checkpointing: str,
    global_batch: int,
    ema: bool = False,
) -> Update:
    """Count an update of ``method`` over networks of ``config``.

    Args:
        latent: (channels, frames, height, width) of a clip.
        checkpointing: ``none``, ``full`` or ``selective``, of the networks that get gradients.
        global_batch: Clips over which the optimisers' work is spread.
        ema: An average of the student is kept.
    """
    if not isinstance(method, DMD2):
        raise TypeError(f"updates are counted of DMD2, not of {type(method).__name__}")

    def networks(role: str) -> torch.nn.Module:
        network = models.build(config, device="meta", dtype=torch.bfloat16, seed=None)
        network.activation_checkpointing = checkpointing  # type: ignore[assignment]
        return network

    made = base.build(method, networks, diffusion.build_schedule(schedule))
    batch = clip(config, latent)
    first = max(method.critic_warmup_steps, method.student_warmup_steps)
    every = method.student_update_freq
    student_step = -(-first // every) * every
    counts = [
        [count_step(made, batch, step, n) for n in range(1, method.sampler.steps + 1)]
        for step in (student_step, student_step + 1)
    ]
    student, critic = (_mean(some) for some in counts)
    sizes = {role: sum(p.numel() for p in network.parameters()) for role, network in made.roles.items()}
    steps = every - 1
    trained = sizes["student"] + steps * sum(sizes[role] for role in method.critics)
    moved = ADAMW * trained + (EMA * sizes["student"] if ema else 0)
    return Update(student, critic, steps, moved / global_batch)


def _mean(counts: list[Count]) -> Count:
    total = counts[0]
    for count in counts[1:]:
        total += count
    return total.times(mean([1 / len(counts)]))
