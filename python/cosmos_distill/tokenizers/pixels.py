"""No tokenizer: pixels as latents, so that a tokenizer can be trained on the streams that all training
reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmos_distill.tokenizers import TokenizerKind

if TYPE_CHECKING:
    import torch


class Pixels:
    """Three channels, every frame and pixel its own."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(3, frames, height, width)."""
        return 3, frames, height, width

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 of the same shape, within [-1, 1]."""
        return video.float() / 127.5 - 1.0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, 3, F, H, W], [-1, 1] -> uint8 of the same shape; what lies outside is cut off."""
        return ((latents.float() + 1.0) * 127.5).round_().clamp_(0, 255).byte()


TOKENIZER = TokenizerKind(
    title="pixels", time=1, space=1, channels=3, local=True, build=lambda path, device: Pixels()
)
