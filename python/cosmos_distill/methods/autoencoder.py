"""Autoencoding: how the film's tokenizer is trained.

Squared errors of pixels, of their differences in space (edges) and in time (motion). Absolute ones, tried
first, gave the same signal-to-noise ratio with a third less motion: their best guess of what is mostly still
is still. What squared errors cannot tell apart they blur, too, so the local strength of the same differences
is to be that of the clip, wherever its detail may lie. There is no perceptual term: features that a loss has
pressed on could not measure afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from cosmos_distill import diffusion
from cosmos_distill.config import MethodConfig, Optim, Setting, Share, Weight
from cosmos_distill.methods.base import Method, Networks, Noise
from cosmos_distill.ranges import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import Schedule


SQUARE = 8
"""Side of the squares whose strength is compared, in pixels."""
FLOOR = 1e-4
"""Added to mean squares below a root, whose slope at zero is infinite: a difference of a hundredth."""


@dataclass(frozen=True, kw_only=True)
class Autoencoding(MethodConfig):
    """Train a tokenizer on clips that are read as pixels (``data.tokenizer`` is pixels)."""

    latent_noise: Weight = 0.08
    """Deviation of the noise added to latents before they are decoded: what is generated is never exact."""
    slopes: Weight = 1.0
    """Weight of differences between neighbouring pixels."""
    motion: Weight = 1.0
    """Weight of differences between consecutive frames."""
    strength: Weight = 1.0
    """Weight of the local strength of both kinds of differences."""
    size: Weight = 1e-4
    """Weight of the latents' mean square, which keeps their scale."""
    controls: Share = 0.125
    """Share of the samples whose control is coded in place of the clip: it passes through the tokenizer,
    too."""
    control_weight: Weight = 0.05
    """Weight of such a sample: the error of an edge map is tens of times that of a clip."""
    student: Optim
    """The tokenizer being trained."""

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """Of all networks there is none that it trains: it trains tokenizers."""
        yield "", "trains a tokenizer: choose --network mini-cv4x4x4 with --data.tokenizer pixels"

    @property
    def pretrains(self) -> bool:
        """There is no teacher, and nothing is sampled."""
        return True

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> AutoencodingMethod:
        """The method over one network with ``encode`` and ``decode``."""
        return AutoencodingMethod(self, {"student": networks("student")}, schedule)


class AutoencodingMethod(Method):
    """Reconstruction of clips through noisy latents."""

    config: Autoencoding

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """Mean squares, each [B], of errors with pixels within [-1, 1]: ``loss/pixels``, ``loss/slopes``,
        ``loss/motion``, ``loss/strength``; and of the latents, ``loss/size``."""
        config, network = self.config, cast(Any, self.roles["student"])
        x = batch.latents
        importance = x.new_ones(len(batch))
        hint = batch.conditioning.hint
        if hint is not None:
            control = noise.uniform("control", x.device) < config.controls
            x = hint.where(diffusion.per_sample(control, 5), x)
            importance = importance.masked_fill(control, config.control_weight)
        z = network.encode(x)
        noisy = z + config.latent_noise * noise.normal("latent", z.shape[1:]).to(z)
        y = network.decode(noisy)
        moved, wanted = ([v.diff(dim=d) for d in (2, 3, 4)] for v in (y, x))
        motion, *slopes = (_mean_square(a - b) for a, b in zip(moved, wanted, strict=True))
        strengths = (_mean_square(_strength(a) - _strength(b)) for a, b in zip(moved, wanted, strict=True))
        terms = {
            "loss/pixels": _mean_square(y - x),
            "loss/slopes": sum(slopes),
            "loss/motion": motion,
            "loss/strength": sum(strengths),
            "loss/size": _mean_square(z),
        }
        weights = (1.0, config.slopes, config.motion, config.strength, config.size)
        terms = {name: importance * term for name, term in terms.items()}
        total = sum(w * term for w, term in zip(weights, terms.values(), strict=True))
        return cast("dict[str, Tensor]", {**terms, "total": total})


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def _strength(differences: Tensor) -> Tensor:
    """Root mean square over squares of 8 x 8 pixels and all colours of each frame of [B, 3, F, H, W]."""
    from torch.nn import functional

    power = functional.avg_pool2d(differences.square().mean(1), SQUARE, ceil_mode=True)
    return (power + FLOOR).sqrt()
