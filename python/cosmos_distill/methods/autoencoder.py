"""Autoencoding: how the film's tokenizer is trained.

Absolute errors of pixels, of their differences in space (edges) and in time (motion). There is no perceptual
term: features that a loss has pressed on could not measure afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from cosmos_distill import diffusion
from cosmos_distill.config import MethodConfig, Optim
from cosmos_distill.methods.base import Method, Networks, Noise

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import Schedule


@dataclass(frozen=True, kw_only=True)
class Autoencoding(MethodConfig):
    """Train a tokenizer on clips that are read as pixels (``data.tokenizer`` is pixels)."""

    latent_noise: float = 0.08
    """Deviation of the noise added to latents before they are decoded: what is generated is never exact."""
    slopes: float = 0.5
    """Weight of differences between neighbouring pixels."""
    motion: float = 0.5
    """Weight of differences between consecutive frames."""
    size: float = 1e-3
    """Weight of the latents' mean square, which keeps their scale."""
    controls: float = 0.125
    """Share of the samples whose control is coded in place of the clip: it passes through the tokenizer,
    too."""
    student: Optim
    """The tokenizer being trained."""

    def __post_init__(self) -> None:
        if not 0 <= self.controls <= 1:
            raise ValueError(f"controls {self.controls} is a share: choose it from 0 to 1")
        if min(self.latent_noise, self.slopes, self.motion, self.size) < 0:
            raise ValueError("latent_noise, slopes, motion and size must not be negative")

    @property
    def sampler(self) -> None:
        """None: nothing is sampled, and there is no teacher."""
        return None

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> AutoencodingMethod:
        """The method over one network with ``encode`` and ``decode``."""
        return AutoencodingMethod(self, {"student": networks("student")}, schedule)


class AutoencodingMethod(Method):
    """Reconstruction of clips through noisy latents."""

    config: Autoencoding

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """``loss/pixels``, ``loss/slopes``, ``loss/motion``: mean absolute errors with pixels within [-1, 1];
        ``loss/size``: mean square of the latents; each [B]."""
        config, network = self.config, cast(Any, self.roles["student"])
        x = batch.latents
        if batch.hint is not None:
            control = noise.uniform("control", x.device) < config.controls
            x = batch.hint.where(diffusion.per_sample(control, 5), x)
        z = network.encode(x)
        noisy = z + config.latent_noise * noise.normal("latent", z.shape[1:]).to(z)
        error = network.decode(noisy) - x
        terms = {
            "loss/pixels": error.abs().flatten(1).mean(1),
            "loss/slopes": sum(error.diff(dim=d).abs().flatten(1).mean(1) for d in (3, 4)),
            "loss/motion": error.diff(dim=2).abs().flatten(1).mean(1),
            "loss/size": z.square().flatten(1).mean(1),
        }
        weights = (1.0, config.slopes, config.motion, config.size)
        total = sum(w * term for w, term in zip(weights, terms.values(), strict=True))
        return cast("dict[str, Tensor]", {**terms, "total": total})
