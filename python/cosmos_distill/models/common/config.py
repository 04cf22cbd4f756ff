"""Sizes of a video DiT of the Cosmos families. Torch-free: the command line reads it before anything
heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from cosmos_distill.families import NetworkConfig
from cosmos_distill.ranges import Problem, Range

Width = Annotated[int, Range(1, 2**17)]
Depth = Annotated[int, Range(1, 2**10)]
LatentSize = Annotated[int, Range(1, 2**16)]
Ratio = Annotated[float, Range(1e-3, 1e3)]


@dataclass(frozen=True, kw_only=True)
class DiTConfig(NetworkConfig):
    """What the video DiTs of all families have in common; a family's own class adds to it, and has the
    defaults of its published network."""

    width: Width
    blocks: Depth
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
    timestep_scale: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Multiplies c_noise before the sinusoidal embedding."""
    init: Literal["xavier", "truncated_normal"] = "xavier"
    """Initial weights of Transfer1 or of Predict2.5."""

    def rules(self) -> Iterator[Problem]:
        """How the sizes go together."""
        if self.heads * self.head_dim != self.width:
            yield "heads", f"{self.heads} x head_dim {self.head_dim} is not width {self.width}"
        if self.head_dim % 2:
            yield "head_dim", f"{self.head_dim} is odd, which no rotary embedding takes"
        if self.patch > min(self.max_height, self.max_width):
            yield "patch", f"{self.patch} must be at most max_height and max_width"

    @property
    def text_channels(self) -> int:
        """Width of the prompt embedding that the network takes."""
        return self.text_projection or self.text_dim

    @property
    def controls(self) -> int:
        """How many controls the network takes at once; 0: it has no control branch."""
        return 0

    @property
    def published_controls(self) -> tuple[str, ...]:
        """Controls of the published network of this size, in the order of its branches; empty: any."""
        return ()

    @property
    def leading_blocks(self) -> int:
        """Blocks at the beginning that a branch steers whose own blocks, as many, are computed in front of
        them: one pipeline rank has all of these together."""
        return 0
