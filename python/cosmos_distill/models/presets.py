"""Sizes of the networks. Torch-free: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A Transfer1 video DiT with its control branch.

    Defaults are those of Cosmos-Transfer1-7B; a smaller network differs in sizes only.
    """

    width: int
    blocks: int
    control_blocks: int
    heads: int
    head_dim: int
    latent_channels: int = 16
    mlp_ratio: int = 4
    adaln_rank: int = 256
    text_dim: int = 1024
    text_tokens: int = 512
    patch: int = 2
    """Latent pixels per token side; one token is one latent frame deep."""
    max_frames: int = 128
    max_height: int = 240
    max_width: int = 240
    """Largest latent grid: the size of the learnable position tables."""
    rope_ratio_t: float = 2.0
    """NTK extrapolation of the temporal frequencies (height and width: 1)."""
    control_rope_ratio_t: float = 1.0
    timestep_scale: float = 1.0
    """Multiplies ln(sigma)/4 before the sinusoidal embedding."""
    hint_channels: int = 128
    """The hint latent is zero-padded to this many channels."""
    hint_widths: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)
    """Hidden sizes of the MLP between the hint's patch embedding and its zero-initialised output."""

    def __post_init__(self) -> None:
        if self.heads * self.head_dim != self.width:
            raise ValueError(f"heads {self.heads} x head_dim {self.head_dim} is not width {self.width}")
        if not 0 < self.control_blocks <= self.blocks:
            raise ValueError(f"control_blocks {self.control_blocks} must lie in 1..{self.blocks}")
        if self.head_dim % 2 or self.head_dim < 18:
            raise ValueError(f"head_dim {self.head_dim} is odd or too small for a 3-D rotary embedding")


PRESETS: dict[str, NetworkConfig] = {
    # 7.236 B + 0.890 B parameters; 56,320 tokens at 720p, 121 frames.
    "transfer1-7b": NetworkConfig(width=4096, blocks=28, control_blocks=3, heads=32, head_dim=128),
    # 3.8 M parameters; 48 tokens: 5 frames of 32 x 32.
    "transfer1-mini": NetworkConfig(
        width=192, blocks=4, control_blocks=1, heads=6, head_dim=32, adaln_rank=48,
        text_dim=64, text_tokens=8, max_frames=8, max_height=16, max_width=16,
        timestep_scale=10.0, hint_widths=(192, 192),
    ),
    # For tests of the machinery: learns nothing worth looking at.
    "transfer1-smoke": NetworkConfig(
        width=48, blocks=2, control_blocks=1, heads=2, head_dim=24, adaln_rank=8,
        text_dim=64, text_tokens=8, max_frames=8, max_height=16, max_width=16,
        timestep_scale=10.0, hint_widths=(16, 32),
    ),
}  # fmt: skip
