"""Sizes of the networks. Torch-free: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cosmos_distill.ranges import Checked, Problem, Range

Width = Annotated[int, Range(1, 2**17)]
Depth = Annotated[int, Range(1, 2**10)]
LatentSize = Annotated[int, Range(1, 2**16)]
Ratio = Annotated[float, Range(1e-3, 1e3)]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Checked):
    """A video DiT of the Cosmos family, with or without a control branch.

    Defaults are those of Cosmos-Transfer1-7B; a smaller network differs in sizes only.
    """

    width: Width
    blocks: Depth
    control_blocks: Annotated[int, Range(0, 2**10)]
    """Blocks of the control branch; 0 builds none."""
    heads: Depth
    head_dim: Annotated[int, Range(12, 2**12)]
    """The rotary embedding splits it in three, and height and width need more than two channels each."""
    latent_channels: Annotated[int, Range(1, 2**12)] = 16
    mlp_ratio: Annotated[int, Range(1, 64)] = 4
    adaln_rank: Width = 256
    text_dim: Width = 1024
    """Width of the text that the blocks attend to."""
    text_projection: Width | None = None
    """Width of the prompt embedding where a frozen linear and GELU bring it to text_dim; None: it has
    text_dim and is used as it is."""
    text_tokens: LatentSize = 512
    patch: Annotated[int, Range(1, 64)] = 2
    """Latent pixels per token side; one token is one latent frame deep."""
    max_frames: LatentSize = 128
    max_height: LatentSize = 240
    max_width: LatentSize = 240
    """Largest latent grid: the size of the learnable position tables."""
    learnable_positions: bool = True
    """Add learnable position tables at every block, besides the rotary positions."""
    rope_ratio_t: Ratio = 2.0
    """NTK extrapolation of the temporal frequencies."""
    rope_ratio_hw: Ratio = 1.0
    """The same for height and width."""
    fps_modulation: bool = True
    """Stretch the temporal positions by 24 / fps."""
    control_rope_ratio_t: Ratio = 1.0
    timestep_scale: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Multiplies c_noise before the sinusoidal embedding."""
    clean_condition_times: bool = False
    """The network was trained to be told that given frames have hardly any noise, instead of their sample's
    level (under TrigFlow: see :mod:`cosmos_distill.methods.conditioning`)."""
    init: Literal["xavier", "truncated_normal"] = "xavier"
    """Initial weights of Transfer1 or of Predict2.5."""
    hint_channels: Annotated[int, Range(1, 2**12)] = 128
    """The hint latent is zero-padded to this many channels."""
    hint_widths: tuple[Width, ...] = (16, 16, 32, 32, 96, 96, 256)
    """Hidden sizes of the MLP between the hint's patch embedding and its zero-initialised output."""

    def rules(self) -> Iterator[Problem]:
        """How the sizes go together."""
        if self.heads * self.head_dim != self.width:
            yield "heads", f"{self.heads} x head_dim {self.head_dim} is not width {self.width}"
        if self.control_blocks > self.blocks:
            yield "control_blocks", f"{self.control_blocks} must lie in 0..{self.blocks}"
        if self.control_blocks and self.text_projection:
            yield "text_projection", "is part of the base only: it needs control_blocks 0"
        if self.head_dim % 2:
            yield "head_dim", f"{self.head_dim} is odd, which no rotary embedding takes"
        if self.control_blocks and not self.hint_widths:
            yield "hint_widths", "must name at least one width"
        if self.control_blocks and self.hint_channels < self.latent_channels:
            yield (
                "hint_channels",
                (f"{self.hint_channels} must be at least latent_channels {self.latent_channels}"),
            )
        if self.patch > min(self.max_height, self.max_width):
            yield "patch", f"{self.patch} must be at most max_height and max_width"

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
    # 3.8 M parameters; 180 tokens of 64 numbers: 9 frames of 48 x 80 through the 4x4x4 tokenizer.
    "transfer1-film": NetworkConfig(
        width=192, blocks=4, control_blocks=1, heads=3, head_dim=64, adaln_rank=48,
        text_dim=64, text_tokens=4, max_frames=8, max_height=16, max_width=32,
        timestep_scale=10.0, hint_channels=16, hint_widths=(192, 192),
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
    # 2.8 M parameters; the film's 180 tokens.
    "predict2.5-film": _predict(
        width=192, blocks=4, heads=3, head_dim=64, adaln_rank=48, text_dim=64, text_projection=64,
        text_tokens=4, max_frames=8, max_height=16, max_width=32, timestep_scale=30.0,
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
