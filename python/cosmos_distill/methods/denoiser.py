"""The denoise seam: from a network to x0, with preconditioning and conditioning frames.

Above it (losses, samplers, metrics) nothing knows the network; below it nothing knows the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cosmos_distill import diffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cosmos_distill.config import Guidance
    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import Denoise, Schedule

AUGMENT_SIGMA = 0.001
"""Noise level at which conditioning frames are shown to the network."""


@dataclass(frozen=True)
class Condition:
    """All that a network is told besides the noisy latent."""

    text: Tensor
    """[B, tokens, channels]"""
    hint: Tensor | None = None
    """Control latent, [B, C, T, H, W]; None leaves the control branch out."""
    fps: Tensor | None = None
    """[B]"""
    padding_mask: Tensor | None = None
    """1 on padding, [B, 1, H, W]"""
    clean: Tensor | None = None
    """Latent whose leading frames are given, [B, C, T, H, W]; only with ``frames``."""
    frames: Tensor | None = None
    """Number of leading clean latent frames, integers [B]; None: none in any sample, at no cost."""

    def __post_init__(self) -> None:
        if (self.clean is None) != (self.frames is None):
            raise ValueError("conditioning frames need both the clean latent and the number of frames")

    @classmethod
    def from_batch(cls, batch: Batch, frames: Tensor | None = None) -> Condition:
        """The condition of ``batch``; keep ``frames`` [B] on the CPU, where reading it waits for nothing."""
        given = frames is not None and bool(frames.any())
        return cls(
            text=batch.text,
            hint=batch.hint,
            fps=batch.fps,
            padding_mask=batch.padding_mask,
            clean=batch.latents if given else None,
            frames=frames.to(batch.latents.device) if frames is not None and given else None,
        )

    def with_text(self, text: Tensor) -> Condition:
        """The same condition under another text; frames and control stay, as in the unconditional branch."""
        return replace(self, text=text)


class Denoiser:
    """A network as a map (x_t, sigma, condition) -> x0.

    The network's inputs are cast to its own dtype, except c_noise and fps, which it embeds in fp32;
    everything before and after it is in the dtype of ``x_t``, fp32 in all methods.
    """

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network = network
        self.schedule = schedule

    def __call__(
        self,
        x_t: Tensor,
        sigma: Tensor,
        condition: Condition,
        *,
        features: Sequence[int] = (),
        features_only: bool = False,
    ) -> Any:
        """Predict x0 [B, C, T, H, W].

        Args:
            x_t: noisy latent x_0 + sigma * eps, [B, C, T, H, W].
            sigma: noise level of each sample, [B].
            features: base blocks whose output is wanted; makes the result (x0, {block: [B, T, H', W', D]}).
            features_only: stop after the last wanted block; x0 is then None.

        Conditioning frames (Transfer1): the network sees them at sigma 0.001, scaled by that level's c_in
        (c_in(0.001)/c_in(sigma) before c_in is applied), and marked in the mask channel; x0 there is the
        clean latent. A sample whose sigma is not above 0.001 has no conditioning frames.
        """
        import torch

        dtype = next(self.network.parameters()).dtype
        # Times are fp64 in a sampler: what is rounded, to the precision of the state, is the coefficients.
        wide = torch.promote_types(x_t.dtype, torch.float32)
        skip, out, scale, c_noise = (c.to(wide) for c in self.schedule.precondition(sigma))
        x_in = scale * x_t
        mask = given = None
        if condition.frames is not None and condition.clean is not None:
            frames = torch.where(sigma > AUGMENT_SIGMA, condition.frames, 0)
            given = _leading(frames, x_t.shape[2])
            fixed = augment_noise(x_t.shape[1:], x_t.device).to(x_t.dtype)
            augmented = condition.clean + AUGMENT_SIGMA * fixed
            level = sigma.new_full((1,), AUGMENT_SIGMA)
            x_in = torch.where(given, self.schedule.precondition(level).c_in * augmented, x_in)
            mask = given.to(dtype).expand(-1, -1, -1, *x_t.shape[3:])

        def cast(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(dtype)

        result = self.network(
            x_in.to(dtype),
            c_noise,
            cast(condition.text),
            hint=cast(condition.hint),
            condition_mask=mask,
            padding_mask=cast(condition.padding_mask),
            fps=condition.fps,
            features=tuple(features),
            features_only=features_only,
        )
        raw, taken = result if features else (result, None)
        if raw is None:
            return None, taken
        x0 = skip * x_t + out * raw.to(x_t.dtype)
        if given is not None and condition.clean is not None:
            x0 = torch.where(given, condition.clean, x0)
        return (x0, taken) if features else x0

    def bind(self, condition: Condition) -> Denoise:
        """denoise(x_t, sigma) -> x0 under a fixed condition, as the samplers take it."""
        return lambda x_t, sigma: self(x_t, sigma, condition)


def guided(denoiser: Denoiser, condition: Condition, negative_text: Tensor, guidance: Guidance) -> Denoise:
    """denoise(x_t, sigma) -> x0 with classifier-free guidance, in two evaluations (one if it is off)."""
    conditional = denoiser.bind(condition)
    if guidance.as_added().scale == 0:
        return conditional
    unconditional = denoiser.bind(condition.with_text(negative_text))
    return lambda x_t, sigma: diffusion.combine(conditional(x_t, sigma), unconditional(x_t, sigma), guidance)


def _leading(frames: Tensor, total: int) -> Tensor:
    """True on the first ``frames[b]`` latent frames of sample b, [B, 1, T, 1, 1]."""
    import torch

    index = torch.arange(total, device=frames.device)
    return (index < frames[:, None])[:, None, :, None, None]


@lru_cache(maxsize=4)
def augment_noise(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """The noise on conditioning frames, [C, T, H, W] fp32: always the same, for every call and sample.

    ``numpy.random.RandomState(1).standard_normal`` over the whole latent, as the official code has it
    at its batch of one.
    """
    import numpy
    import torch

    values = numpy.random.RandomState(1).standard_normal(tuple(shape)).astype("float32")
    return torch.from_numpy(values).to(device)
