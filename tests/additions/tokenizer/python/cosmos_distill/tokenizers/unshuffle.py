"""Squares of 4 x 4 pixels as channels, every frame its own: a tokenizer without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmos_distill.tokenizers import TokenizerKind

if TYPE_CHECKING:
    import torch

SIDE = 4


class Unshuffle:
    """48 channels, a sixteenth of the positions, every number kept."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(48, frames, height / 4, width / 4)."""
        if height % SIDE or width % SIDE:
            raise ValueError(f"height {height} and width {width} must be multiples of {SIDE}")
        return 3 * SIDE**2, frames, height // SIDE, width // SIDE

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, 48, F, H / 4, W / 4], within [-2, 2]."""
        from torch.nn import functional as F

        frames = video.transpose(1, 2).float() / 63.75 - 2.0
        return F.pixel_unshuffle(frames, SIDE).transpose(1, 2).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse; what lies outside is cut off."""
        from torch.nn import functional as F

        frames = F.pixel_shuffle(latents.transpose(1, 2).float(), SIDE).transpose(1, 2)
        return ((frames + 2.0) * 63.75).round().clamp(0, 255).byte()


TOKENIZER = TokenizerKind(
    title="unshuffle",
    time=1,
    space=SIDE,
    channels=3 * SIDE**2,
    local=True,
    build=lambda path, device: Unshuffle(),
)
