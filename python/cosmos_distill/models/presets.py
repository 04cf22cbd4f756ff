"""Sizes of the networks. Torch-free: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A video DiT of the Cosmos family, with or without a control branch.

    Defaults are those of Cosmos-Transfer1-7B; a smaller network differs in sizes only.
    """

    width: int
    blocks: int
    control_blocks: int
    """Blocks of the control branch; 0 builds none."""
    heads: int
    head_dim: int
    latent_channels: int = 16
    mlp_ratio: int = 4
    adaln_rank: int = 256
    text_dim: int = 1024
    """Width of the text that the blocks attend to."""
    text_projection: int | None = None
    """Width of the prompt embedding where a frozen linear and GELU bring it to text_dim; None: it has
    text_dim and is used as it is."""
    text_tokens: int = 512
    patch: int = 2
    """Latent pixels per token side; one token is one latent frame deep."""
    max_frames: int = 128
    max_height: int = 240
    max_width: int = 240
    """Largest latent grid: the size of the learnable position tables."""
    learnable_positions: bool = True
    """Add learnable position tables at every block, besides the rotary positions."""
    rope_ratio_t: float = 2.0
    """NTK extrapolation of the temporal frequencies."""
    rope_ratio_hw: float = 1.0
    """The same for height and width."""
    fps_modulation: bool = True
    """Stretch the temporal positions by 24 / fps."""
    control_rope_ratio_t: float = 1.0
    timestep_scale: float = 1.0
    """Multiplies c_noise before the sinusoidal embedding."""
    clean_condition_times: bool = False
    """The network was trained to be told that given frames have hardly any noise, instead of their sample's
    level (under TrigFlow: see :mod:`cosmos_distill.methods.conditioning`)."""
    init: Literal["xavier", "truncated_normal"] = "xavier"
    """Initial weights of Transfer1 or of Predict2.5."""
    hint_channels: int = 128
    """The hint latent is zero-padded to this many channels."""
    hint_widths: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)
    """Hidden sizes of the MLP between the hint's patch embedding and its zero-initialised output."""

    def __post_init__(self) -> None:
        if self.heads * self.head_dim != self.width:
            raise ValueError(f"heads {self.heads} x head_dim {self.head_dim} is not width {self.width}")
        if not 0 <= self.control_blocks <= self.blocks:
            raise ValueError(f"control_blocks {self.control_blocks} must lie in 0..{self.blocks}")
        if self.control_blocks and self.text_projection:
            raise ValueError("text_projection is part of the base only: it needs control_blocks 0")
        if self.head_dim % 2 or self.head_dim < 18:
            raise ValueError(f"head_dim {self.head_dim} is odd or too small for a 3-D rotary embedding")

    @property
    def text_channels(self) -> int:
        """Width of the prompt embedding that the network takes."""
        return self.text_projection or self.text_dim


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A causal 4x4x4 tokenizer: principal components and two small convolutional networks for the rest."""

    channels: int = 16
    encoder_width: int
    decoder_width: int
    decoder_blocks: int
    """Residual blocks of the decoder; the encoder has one."""


def _predict(**sizes: Any) -> NetworkConfig:
    """What all Predict2.5 networks have in common."""
    return NetworkConfig(
        control_blocks=0, learnable_positions=False, rope_ratio_t=1.0, rope_ratio_hw=3.0,
        fps_modulation=False, init="truncated_normal", **sizes,
    )  # fmt: skip


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
    # 2.059 B parameters, 0.103 B of them in the text projection; 84,480 tokens at 720p, 93 frames.
    "predict2.5-2b": _predict(
        width=2048, blocks=28, heads=16, head_dim=128, text_projection=100_352, clean_condition_times=True,
    ),
    # 14.368 B parameters.
    "predict2.5-14b": _predict(
        width=5120, blocks=36, heads=40, head_dim=128, text_projection=100_352,
    ),
    # 2.8 M parameters; 48 tokens: 5 frames of 32 x 32. c_noise is tau, within 0..1, which is less spread
    # than ln(sigma)/4: hence a larger scale than Transfer1's.
    "predict2.5-mini": _predict(
        width=192, blocks=4, heads=6, head_dim=32, adaln_rank=48, text_dim=64, text_projection=64,
        text_tokens=8, max_frames=8, max_height=16, max_width=16, timestep_scale=30.0,
        clean_condition_times=True,
    ),
    "predict2.5-smoke": _predict(
        width=48, blocks=2, heads=2, head_dim=24, adaln_rank=8, text_dim=64, text_projection=64,
        text_tokens=8, max_frames=8, max_height=16, max_width=16, timestep_scale=30.0,
        clean_condition_times=True,
    ),
}  # fmt: skip

AUTOENCODERS: dict[str, AutoencoderConfig] = {
    # 1.0 M parameters; 9 frames of 48 x 80 become 16 x 3 x 12 x 20.
    "mini-cv4x4x4": AutoencoderConfig(encoder_width=64, decoder_width=96, decoder_blocks=3),
}
