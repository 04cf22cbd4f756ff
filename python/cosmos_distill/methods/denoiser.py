"""The denoise seam: from a network to x0, with preconditioning and given frames.

Above it (losses, samplers, metrics) nothing knows the network; below it nothing knows the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cosmos_distill import diffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cosmos_distill.config import Guidance
    from cosmos_distill.data.conditioning import Conditioning
    from cosmos_distill.diffusion import Denoise, Given, Schedule

Features = dict[int, "Tensor"]
"""Outputs of blocks by number, each [B, T, H', W', D]."""


class Network(Protocol):
    """What the seam asks of a network: our own have this signature, and an
    :class:`~cosmos_distill.adapters.Adapter` gives it to any other.

    ``config`` says what a method has to know of it: ``blocks``, how many blocks there are to read features
    from, and ``width``, their channels. Where a network has a ``dtype`` it takes its inputs in that, else in
    that of its first parameter. It gets the tensors of the conditioning, None for a missing ``hint``,
    ``padding_mask`` or ``fps``; what a source gives beside these
    (:attr:`~cosmos_distill.data.conditioning.Conditioning.extra`) are further arguments by name.
    """

    def give_frames(self, schedule: Schedule, mask: Tensor, clean: Tensor, times: Tensor) -> Given:
        """How leading frames are shown to it; see :class:`cosmos_distill.diffusion.Given`. Asked for nothing
        else than given frames.

        Args:
            mask: True on given frames, bool [B, 1, T, 1, 1].
            clean: their latent, [B, C, T, H, W].
            times: noise coordinate of the samples, [B] or [B, T].
        """

    def __call__(
        self,
        x: Tensor,
        c_noise: Tensor,
        text: Tensor,
        *,
        hint: Tensor | None,
        condition_mask: Tensor | None,
        padding_mask: Tensor | None,
        fps: Tensor | None,
        features: Sequence[int],
        features_only: bool,
    ) -> Tensor | tuple[Tensor | None, Features]:
        """The output [B, C, T, H, W]; with ``features`` a pair of it and them. Under ``features_only`` it is
        not computed, and None."""


class Prediction(NamedTuple):
    """What :meth:`Denoiser.with_features` returns."""

    x0: Tensor
    """[B, C, T, H, W]"""
    features: Features
    """block -> [B, T, H', W', D]"""


class _Inputs(NamedTuple):
    """What a network is called with, and how x0 is made of what it returns."""

    x: Tensor
    c_noise: Tensor
    skip: Tensor
    out: Tensor
    given: Given | None


class Denoiser:
    """A network as a map (x_t, t, conditioning) -> x0, with t the noise coordinate of the schedule.

    x_t is the noisy latent, [B, C, T, H, W], in the scale of the schedule; t the noise coordinate of each
    sample, [B] (sigma under EDM, the angle under TrigFlow). In fp64 t is exact: only the coefficients are
    rounded, to the precision of x_t.

    The network's inputs are cast to its own dtype, except c_noise and fps, which it embeds in fp32;
    everything before and after it is in the dtype of ``x_t``, fp32 in all methods.

    Given frames are shown to the network as it says itself (:meth:`Network.give_frames`), and marked in its
    mask channel; x0 there is the clean latent.
    """

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network = network
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict x0, [B, C, T, H, W]."""
        inputs = self._prepare(x_t, t, conditioning)
        return self._x0(x_t, conditioning, inputs, self._call(inputs, conditioning))

    def with_features(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]
    ) -> Prediction:
        """Predict x0, and return the outputs of ``blocks``, the numbers of base blocks, of the same pass."""
        inputs = self._prepare(x_t, t, conditioning)
        raw, features = self._call(inputs, conditioning, features=tuple(blocks))
        return Prediction(self._x0(x_t, conditioning, inputs, raw), features)

    def features(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, blocks: Sequence[int]) -> Features:
        """The outputs of ``blocks`` alone: the network may stop after the last of them."""
        inputs = self._prepare(x_t, t, conditioning)
        found: tuple[None, Features] = self._call(
            inputs, conditioning, features=tuple(blocks), features_only=True
        )
        return found[1]

    def _prepare(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> _Inputs:
        import torch

        wide = torch.promote_types(x_t.dtype, torch.float32)
        told, given = t, None
        mask, clean = conditioning.given_mask(x_t.shape[2]), conditioning.clean
        if mask is not None and clean is not None:
            shown = torch.zeros_like(clean) if conditioning.zeroed else clean
            given = self.network.give_frames(self.schedule, mask, shown, t)  # type: ignore[operator]
            told = given.times
        skip, out, scale, c_noise = (c.to(wide) for c in self.schedule.precondition(told))
        x_in = scale * x_t
        if given is not None:
            x_in = torch.where(given.mask, given.latent, x_in)
        return _Inputs(x_in, c_noise, skip, out, given)

    def _call(
        self,
        inputs: _Inputs,
        conditioning: Conditioning,
        *,
        features: tuple[int, ...] = (),
        features_only: bool = False,
    ) -> Any:
        dtype, given = dtype_of(self.network), inputs.given
        size = inputs.x.shape[3:]

        told: dict[str, Tensor | None] = dict.fromkeys(("hint", "padding_mask", "fps"))
        return self.network(
            inputs.x.to(dtype),
            inputs.c_noise,
            condition_mask=None if given is None else given.mask.to(dtype).expand(-1, -1, -1, *size),
            **told | conditioning.network_inputs(dtype),
            features=features,
            features_only=features_only,
        )

    @staticmethod
    def _x0(x_t: Tensor, conditioning: Conditioning, inputs: _Inputs, raw: Tensor) -> Tensor:
        import torch

        x0 = inputs.skip * x_t + inputs.out * raw.to(x_t.dtype)
        if inputs.given is not None and conditioning.clean is not None:
            x0 = torch.where(inputs.given.mask, conditioning.clean, x0)
        return x0

    def bind(self, conditioning: Conditioning) -> Denoise:
        """denoise(x_t, t) -> x0 under a fixed conditioning, as the samplers take it."""
        return lambda x_t, t: self(x_t, t, conditioning)


def guided(denoiser: Denoiser, conditioning: Conditioning, guidance: Guidance) -> Denoise:
    """denoise(x_t, t) -> x0 with classifier-free guidance, in two evaluations (one if it is off)."""
    conditional = denoiser.bind(conditioning)
    if guidance.as_added().scale == 0:
        return conditional
    unconditional = denoiser.bind(conditioning.unconditional(guidance.unconditional_frames))
    return lambda x_t, t: diffusion.combine(conditional(x_t, t), unconditional(x_t, t), guidance)


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type in which a network takes its inputs: its ``dtype``, or that of its first parameter."""
    import torch

    said = getattr(network, "dtype", None)
    return said if isinstance(said, torch.dtype) else next(network.parameters()).dtype
