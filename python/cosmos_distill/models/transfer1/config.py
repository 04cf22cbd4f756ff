"""What Cosmos-Transfer1 is: its sizes, and everything that the rest of the package asks of it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from cosmos_distill.config import EDM
from cosmos_distill.diffusion.teacher import RES_2AB
from cosmos_distill.families import Family, TextEncoder
from cosmos_distill.models.common.config import DiTConfig, Ratio, Width
from cosmos_distill.models.common.given import augmented_frames
from cosmos_distill.models.common.prompts import CRUDE_GAME
from cosmos_distill.models.transfer1.names import Transfer1Names
from cosmos_distill.ranges import Problem, Range

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.transfer1.network import Transfer1


@dataclass(frozen=True, kw_only=True)
class Transfer1Config(DiTConfig):
    """A base network with a control branch in front, or several. Defaults are those of Cosmos-Transfer1-7B; a
    smaller network differs in sizes only."""

    family_name: ClassVar[str] = "transfer1"

    control_blocks: Annotated[int, Range(0, 2**10)] = 3
    """Blocks of a control branch; 0 builds none."""
    branches: Annotated[int, Range(1, 16)] = 1
    """Controls at once, each with a branch of its own: what the published networks of one control each, which
    share a base, are together."""
    control_rope_ratio_t: Ratio = 1.0
    hint_channels: Annotated[int, Range(1, 2**12)] = 128
    """The hint latent is zero-padded to this many channels."""
    hint_widths: tuple[Width, ...] = (16, 16, 32, 32, 96, 96, 256)
    """Hidden sizes of the MLP between the hint's patch embedding and its zero-initialised output."""

    def rules(self) -> Iterator[Problem]:
        """How the sizes go together."""
        yield from super().rules()
        if self.control_blocks > self.blocks:
            yield "control_blocks", f"{self.control_blocks} must lie in 0..{self.blocks}"
        if self.branches > 1 and not self.control_blocks:
            yield "branches", f"{self.branches} branches need control_blocks"
        if self.control_blocks and self.text_projection:
            yield "text_projection", "is part of the base only: it needs control_blocks 0"
        if self.control_blocks and not self.hint_widths:
            yield "hint_widths", "must name at least one width"
        if self.control_blocks and self.hint_channels < self.latent_channels:
            yield (
                "hint_channels",
                f"{self.hint_channels} must be at least latent_channels {self.latent_channels}",
            )

    @property
    def controls(self) -> int:
        """As many as there are branches."""
        return self.branches if self.control_blocks else 0

    @property
    def leading_blocks(self) -> int:
        """The blocks that the branches steer."""
        return self.control_blocks


def _network(config: Transfer1Config, dtype: torch.dtype) -> Transfer1:
    from cosmos_distill.models.transfer1.network import Transfer1

    return Transfer1(config, dtype=dtype)


PRESETS = {
    # 7.236 B + 0.890 B parameters; 56,320 tokens at 720p, 121 frames.
    "transfer1-7b": Transfer1Config(width=4096, blocks=28, heads=32, head_dim=128),
    # 3.8 M parameters; 48 tokens: 5 frames of 32 x 32.
    "transfer1-mini": Transfer1Config(
        width=192, blocks=4, control_blocks=1, heads=6, head_dim=32, adaln_rank=48,
        text_dim=64, text_tokens=8, max_frames=8, max_height=16, max_width=16,
        timestep_scale=10.0, hint_widths=(192, 192),
    ),
    # For tests of the machinery: learns nothing worth looking at.
    "transfer1-smoke": Transfer1Config(
        width=48, blocks=2, control_blocks=1, heads=2, head_dim=24, adaln_rank=8,
        text_dim=64, text_tokens=8, max_frames=8, max_height=16, max_width=16,
        timestep_scale=10.0, hint_widths=(16, 32),
    ),
    # 3.8 M parameters; 180 tokens of 64 numbers: 9 frames of 48 x 80 through the 4x4x4 tokenizer.
    "transfer1-film": Transfer1Config(
        width=192, blocks=4, control_blocks=1, heads=3, head_dim=64, adaln_rank=48,
        text_dim=64, text_tokens=4, max_frames=8, max_height=16, max_width=32,
        timestep_scale=10.0, hint_channels=16, hint_widths=(192, 192),
    ),
}  # fmt: skip
FAMILY = Family(
    title="Cosmos-Transfer1",
    config=Transfer1Config,
    presets=PRESETS,
    network=_network,
    names=Transfer1Names(),
    give_frames=augmented_frames,
    schedule=EDM,
    teacher=RES_2AB,
    tokenizers=("cosmos-cv8x8x8",),
    text=TextEncoder("T5-XXL", "t5_xxl", "t5", CRUDE_GAME),
    weights_help=(
        "the merged base and control file, .safetensors or .pt, or a folder with base_model and "
        "<control>_control, of several controls at once with --network.branches"
    ),
    wall_seconds={"transfer1-smoke": 90.0, "transfer1-mini": 720.0},
)
