"""The one thing that passes between data and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.to_device import sent


@dataclass
class Batch:
    """B samples, encoded. Every tensor is fp32 unless stated.

    A latent is ``tokenizer(video) * sigma_data``, so its standard deviation is about sigma_data.
    """

    first: int
    """Global index of the first sample: samples first .. first+B-1 of the endless, seeded stream."""
    latents: torch.Tensor
    """Clip (real, or the teacher's in pairs), [B, C, T, H, W]."""
    conditioning: Conditioning
    """What the network is told of the samples."""
    noise: torch.Tensor | None = None
    """Unit Gaussian noise the teacher started from, [B, C, T, H, W]; pairs only."""
    names: tuple[str, ...] = ()
    """Where each sample comes from, for error messages and the report."""

    def __post_init__(self) -> None:
        """Raises ValueError where further conditioning has the name of one of the batch's own tensors."""
        if taken := self.conditioning.extra.keys() & {"latents", "noise"}:
            raise ValueError(f"extra: {', '.join(sorted(taken))} are of the batch itself, so rename it")

    def __len__(self) -> int:
        return self.latents.shape[0]

    @property
    def fps(self) -> torch.Tensor | None:
        """Frames per second of each sample, fp32 [B], where the network is told."""
        return self.conditioning.fps

    @classmethod
    def of(cls, first: int, tensors: Mapping[str, torch.Tensor | None], names: tuple[str, ...] = ()) -> Batch:
        """The batch of tensors by name: ``latents``, ``noise`` and those of its conditioning, ``text`` at
        least. None stands for a tensor that is not there."""
        there = {name: value for name, value in tensors.items() if value is not None}
        latents, noise = there.pop("latents"), there.pop("noise", None)
        return cls(first, latents, Conditioning.of(there), noise, names)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors that there are, by name: the inverse of :meth:`of`, for what is stored or sent."""
        noise = {} if self.noise is None else {"noise": self.noise}
        return {"latents": self.latents, **noise, **self.conditioning.tensors()}

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same batch with ``function`` of every tensor."""
        return replace(
            self,
            latents=function(self.latents),
            conditioning=self.conditioning.map(function),
            noise=None if self.noise is None else function(self.noise),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, not waiting for it (:func:`cosmos_distill.to_device.sent`)."""
        return self.map(lambda value: sent(value, device))

    def given(self, frames: torch.Tensor | None) -> Conditioning:
        """The batch's conditioning with its clips' first frames given, as many of each sample as ``frames``,
        integers [B], says; keep those on the CPU. None gives none."""
        return self.conditioning.with_given_frames(self.latents, frames)
