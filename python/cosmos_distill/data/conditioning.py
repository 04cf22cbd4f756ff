"""What a network is told besides the noisy latent: one record, from the source on disk to the blocks.

Sources fill it, :class:`~cosmos_distill.data.batch.Batch` carries it, pairs store it, ranks send it to each
other, and the denoise seam hands its tensors to the network by name. All of them go through
:meth:`Conditioning.tensors`, so that a tensor which a new family needs is named in two places only: in the
source that makes it (in ``extra``) and in the arguments of the network that reads it. Torch-free at import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from cosmos_distill.to_device import sent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cosmos_distill.config import UnconditionalFrames

NEGATIVE = "negative_"
"""Prefix of a tensor that stands in place of another one in the unconditional branch of guidance."""
_OF_GIVEN_FRAMES = ("clean", "given_frames")
_EXACT = ("fps",)


@dataclass(frozen=True)
class Conditioning:
    """All that a network is told besides the noisy latent. Every tensor has B samples first, and is fp32
    unless stated.

    Raises:
        ValueError: frames are given without their number, or the other way round, or ``extra`` holds a tensor
            under the name of a field, or a negative of what is not there.
    """

    text: Tensor
    """Prompt embedding, [B, tokens, channels]."""
    negative_text: Tensor | None = None
    """Embedding of the unconditional branch, [B, tokens, channels]."""
    hint: Tensor | None = None
    """Control video through the tokenizer of the clip, [B, C, T, H, W]; None where there is no control."""
    fps: Tensor | None = None
    """Frames per second of the decoded video, [B]."""
    padding_mask: Tensor | None = None
    """1 where the latent is padding, [B, 1, H, W]."""
    clean: Tensor | None = None
    """Latent whose leading frames are given, [B, C, T, H, W]; only with ``given_frames``."""
    given_frames: Tensor | None = None
    """Number of leading latent frames that are given, integers [B]; None: none in any sample, at no cost."""
    zeroed: bool = False
    """Show the network zeros in place of the given frames; all else about them stays."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further tensors by the name of the network's argument, as a family needs them. One called
    ``negative_x`` replaces ``x`` in the unconditional branch, as ``negative_text`` replaces the text."""

    def __post_init__(self) -> None:
        if (self.clean is None) != (self.given_frames is None):
            raise ValueError("given frames need both the clean latent and the number of frames")
        if taken := self.extra.keys() & {f.name for f in fields(self)}:
            raise ValueError(f"extra: {', '.join(sorted(taken))} are fields of their own")
        for name in self.extra:
            stands_for = name.removeprefix(NEGATIVE)
            if stands_for != name and stands_for not in self.tensors():
                raise ValueError(f"{name} replaces {stands_for!r}, which is not there: give both or neither")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Conditioning:
        """The record of tensors by name; the inverse of :meth:`tensors`."""
        own = {f.name for f in fields(cls)} - {"extra", "zeroed"}
        known: dict[str, Any] = {name: value for name, value in tensors.items() if name in own}
        return cls(**known, extra={name: value for name, value in tensors.items() if name not in own})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that there are, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "zeroed")}
        return {name: value for name, value in found.items() if value is not None} | dict(self.extra)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same record with ``function`` of every tensor."""
        changed = {name: function(value) for name, value in self.tensors().items()}
        return replace(type(self).of(changed), zeroed=self.zeroed)

    def with_given_frames(self, clean: Tensor, given_frames: Tensor | None) -> Conditioning:
        """The same conditioning with leading frames of ``clean`` [B, C, T, H, W] given.

        Args:
            given_frames: How many of each sample, integers [B]; keep it on the CPU, where reading it waits
                for nothing. None, or zeros only: none.
        """
        if given_frames is None or not bool(given_frames.any()):
            return self
        return replace(self, clean=clean, given_frames=sent(given_frames, clean.device))

    def unconditional(self, frames: UnconditionalFrames) -> Conditioning:
        """The unconditional branch of guidance: the negative text, and of other tensors those that have a
        negative; the same control; and the given frames ``kept`` or ``zeroed`` in the network's input."""
        own = self.tensors()
        negative = {name.removeprefix(NEGATIVE): x for name, x in own.items() if name.startswith(NEGATIVE)}
        if "text" not in negative:
            raise ValueError("the unconditional branch needs negative_text beside the text")
        return replace(type(self).of(own | negative), zeroed=frames == "zeroed")

    def dropped(self, samples: Tensor) -> Conditioning:
        """The same conditioning, unconditional in those of the ``samples``, bool [B], that are True."""
        off, own = self.unconditional("kept").tensors(), self.tensors()
        mixed = {
            name: value
            if value is own[name]
            else value.where(samples.reshape(-1, *(1,) * (value.ndim - 1)), own[name])
            for name, value in off.items()
        }
        return replace(type(self).of(mixed), zeroed=self.zeroed)

    def given_mask(self, total: int) -> Tensor | None:
        """True on the given ones of ``total`` latent frames, [B, 1, T, 1, 1]; None if no sample has any."""
        if self.given_frames is None:
            return None
        import torch

        index = torch.arange(total, device=self.given_frames.device)
        return (index < self.given_frames[:, None])[:, None, :, None, None]

    def network_inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a network is called with by name: all tensors but the negative ones and the given frames,
        which the denoise seam puts into the latent. Floating point is cast to ``dtype``, but for fps, which
        networks embed in fp32; integers stay as they are."""
        return {
            name: value.to(dtype) if value.is_floating_point() and name not in _EXACT else value
            for name, value in self.tensors().items()
            if not name.startswith(NEGATIVE) and name not in _OF_GIVEN_FRAMES
        }
