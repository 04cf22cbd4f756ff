"""Sizes of the small tokenizer. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from cosmos_distill.families import Family, NetworkConfig
from cosmos_distill.ranges import Problem, Range

if TYPE_CHECKING:
    import torch
    from torch import nn

COLOURS, GROUP, SIDE = 3, 4, 4
"""A block is so many frames (after the first, which is one of its own) of a square of such a side."""
NORM_GROUPS = 8
"""Groups of channels that are normalised together."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(NetworkConfig):
    """A causal 4x4x4 tokenizer: principal components and two small convolutional networks for the rest."""

    family_name: ClassVar[str] = "mini-tokenizer"

    channels: Annotated[int, Range(1, 192)] = 16
    encoder_width: Annotated[int, Range(8, 2**12)] = 64
    decoder_width: Annotated[int, Range(8, 2**12)] = 96
    decoder_blocks: Annotated[int, Range(1, 2**8)] = 3
    """Residual blocks of the decoder; the encoder has one."""

    def rules(self) -> Iterator[Problem]:
        """Normalisation is over groups of channels."""
        for name in ("encoder_width", "decoder_width"):
            if (width := getattr(self, name)) % NORM_GROUPS:
                yield name, f"{width} must be a multiple of {NORM_GROUPS}"


def _network(config: AutoencoderConfig, dtype: torch.dtype) -> nn.Module:
    from cosmos_distill.models.mini_tokenizer.network import Autoencoder

    return Autoencoder(config).to(dtype)


PRESETS = {
    # 1.0 M parameters; 9 frames of 48 x 80 become 16 x 3 x 12 x 20.
    "mini-cv4x4x4": AutoencoderConfig(encoder_width=64, decoder_width=96, decoder_blocks=3),
}
FAMILY = Family(
    title="tokenizer of the small scales",
    config=AutoencoderConfig,
    presets=PRESETS,
    network=_network,
)
