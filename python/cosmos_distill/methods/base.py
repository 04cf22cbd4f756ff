"""What every method is made of: roles, their phases, and randomness that no layout can change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from cosmos_distill import diffusion
from cosmos_distill.config import MethodConfig, Optim
from cosmos_distill.methods.denoiser import Denoiser
from cosmos_distill.randomness import Noise

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.conditioning import Conditioning
    from cosmos_distill.diffusion import Schedule

    Device = torch.device | str

Networks = Callable[[str], "nn.Module"]
"""networks(role): a fresh copy of the role's starting weights. ``student``: the stage's start;
``teacher`` and ``fake_score``: the teacher."""


class Method(ABC):
    """A loss over roles. The trainer owns optimisers, accumulation, clipping, averages and checkpoints."""

    trainable: tuple[str, ...] = ("student",)
    """Roles that have an optimiser."""

    def __init__(self, config: MethodConfig, roles: Mapping[str, nn.Module], schedule: Schedule) -> None:
        self.config = config
        self.schedule = schedule
        self.roles = dict(roles)
        for role, network in self.roles.items():
            network.train(role in self.trainable)
            network.requires_grad_(role in self.trainable)

    def optim(self, role: str) -> Optim:
        """The optimiser of a trainable role: the Config's field of that name."""
        return cast(Optim, getattr(self.config, role))

    def phase(self, step: int) -> tuple[str, ...]:
        """Roles that optimiser step ``step`` (from 0) updates; all others have no gradient then."""
        return self.trainable

    def alignments(self, roles: Sequence[str]) -> Mapping[str, tuple[str, float]]:
        """Roles whose weights move towards another's after an optimiser step of ``roles``: the other role,
        and the share of the own weights that is kept. None of them, unless a method says so."""
        return {}

    @abstractmethod
    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """Loss terms of every sample, each fp32 [B], with the graph of ``phase(step)``'s roles only.

        ``total`` is what is differentiated: the trainer back-propagates its sum over all micro-batches and
        ranks divided by the global batch, so that every mean is a global sum over a global count.
        The other keys go to the log, unweighted. ``nonfinite/<term>`` is 1 for samples that were left out of
        ``loss/<term>`` because theirs was not finite, else 0; a step that was to leave out all is skipped.
        """

    def denoiser(self, role: str) -> Denoiser:
        """The role's network behind the denoise seam."""
        return Denoiser(self.roles[role], self.schedule)

    def sample(
        self,
        role: str,
        noise: Tensor,
        conditioning: Conditioning,
        times: Sequence[float] | None = None,
        fresh: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """x0 from unit ``noise`` [B, C, T, H, W] at ``times`` (None: one step), with the graph of the last
        evaluation only: the export's sampler as training uses it."""
        return diffusion.few_step(
            self.denoiser(role).bind(conditioning),
            noise,
            self.schedule.student_times(1) if times is None else times,
            self.schedule.noising,
            fresh=fresh,
            last_gradient_only=True,
        )

    def enable_gradients(self, active: Sequence[str]) -> None:
        """Let gradients reach ``active`` alone. Frozen networks may still be part of the graph."""
        for role, network in self.roles.items():
            network.requires_grad_(role in active)


def unit_noise(batch: Batch, noise: Noise, name: str) -> Tensor:
    """Unit Gaussian noise like the batch's latents, [B, C, T, H, W]."""
    return noise.normal(name, batch.latents.shape[1:]).to(batch.latents)


def draw_given_frames(batch: Batch, noise: Noise, probabilities: Sequence[float]) -> Conditioning:
    """The batch's conditioning with n leading latent frames given with ``probabilities[n]``, per sample; none
    of clips of one latent frame, of which nothing would be left to generate."""
    import torch

    bounds = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)[:-1]
    drawn = noise.uniform("condition_frames").double()
    if batch.latents.shape[2] == 1:
        return batch.given(torch.zeros(len(drawn), dtype=torch.int64))
    return batch.given(torch.searchsorted(bounds, drawn, right=True))


class Buildable(Protocol):
    """A method's Config."""

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> Method:
        """The method over fresh networks; ``seed`` decides initial weights that no checkpoint gives."""


def build(config: MethodConfig, networks: Networks, schedule: Schedule, *, seed: int = 0) -> Method:
    """The method that ``config`` describes.

    Raises:
        TypeError: ``config`` is not the Config of a method.
    """
    if not hasattr(config, "build"):
        raise TypeError(f"{type(config).__name__} describes no method: use KD, DMD2 or Denoising")
    return cast(Buildable, config).build(networks, schedule, seed=seed)
