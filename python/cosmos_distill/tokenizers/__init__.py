"""Tokenizers: uint8 video to latents of about unit scale, and back.

``haar`` (mini scale) has no weights; ``mini-cv4x4x4`` is learned and shipped; ``pixels`` leaves clips as they
are, for training one; ``cosmos`` runs NVIDIA's CV 8x8x8 from its TorchScript files, ``wan``
the VAE of Wan 2.1 through diffusers. None of them multiplies by sigma_data: that is done once, in
:mod:`cosmos_distill.data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch


class Tokenizer(Protocol):
    """Causal video tokenizer: the first frame becomes a latent frame of its own."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, C, T, h, w] of about unit standard deviation."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, T, h, w] of about unit standard deviation -> uint8 [B, 3, F, H, W]."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a clip; ValueError when the clip cannot be tokenised."""


class TokenizerChoice(Protocol):
    """The two fields of :class:`cosmos_distill.config.Data` that :func:`build` reads."""

    @property
    def tokenizer(self) -> str:
        """``haar``, ``mini-cv4x4x4``, ``pixels``, ``cosmos-cv8x8x8`` or ``wan2.1``."""

    @property
    def tokenizer_path(self) -> Path | None:
        """Folder of the weights (not for haar); for mini-cv4x4x4 their file, or None."""


def build(data: TokenizerChoice, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that ``data`` names, on ``device``.

    Raises ValueError for an unknown name or a tokenizer with weights without its folder, FileNotFoundError
    when a file is missing from that folder.
    """
    if data.tokenizer == "haar":
        from cosmos_distill.tokenizers.haar import Haar

        return Haar(device=device)
    if data.tokenizer == "pixels":
        from cosmos_distill.tokenizers.pixels import Pixels

        return Pixels()
    if data.tokenizer == "mini-cv4x4x4":
        from cosmos_distill.tokenizers.learned import Learned

        return Learned(data.tokenizer_path, device=device)
    if data.tokenizer == "cosmos-cv8x8x8":
        from cosmos_distill.tokenizers.cosmos import CosmosCV8x8x8

        if data.tokenizer_path is None:
            raise ValueError(
                "the Cosmos tokenizer needs its folder (encoder.jit, decoder.jit, mean_std.pt): "
                "set data.tokenizer_path, for example to checkpoints/Cosmos-Tokenize1-CV8x8x8-720p"
            )
        return CosmosCV8x8x8(data.tokenizer_path, device=device)
    if data.tokenizer == "wan2.1":
        from cosmos_distill.tokenizers.wan import Wan

        if data.tokenizer_path is None:
            raise ValueError(
                "the Wan tokenizer needs its folder (config.json and safetensors weights): set "
                "data.tokenizer_path, for example to the vae folder of Wan2.1-T2V-1.3B-Diffusers"
            )
        return Wan(data.tokenizer_path, device=device)
    raise ValueError(
        f"unknown tokenizer {data.tokenizer!r}: choose haar, mini-cv4x4x4, cosmos-cv8x8x8 or wan2.1"
    )
