"""What Cosmos-Transfer2.5 is: its sizes, and everything that the rest of the package asks of it.
Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from cosmos_distill.families import TextEncoder
from cosmos_distill.models.common.prompts import CRUDE_GAME
from cosmos_distill.models.predict25 import config as predict25
from cosmos_distill.models.predict25.config import Predict25Config
from cosmos_distill.models.transfer25.names import Transfer25Names
from cosmos_distill.ranges import Problem, Range

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.transfer25.network import Transfer25


PUBLISHED = ("edge", "vis", "depth", "seg")
"""Controls of the published network that takes several, in the order of its branches."""


@dataclass(frozen=True, kw_only=True)
class Transfer25Config(Predict25Config):
    """Predict2.5's network with one control branch or several. Defaults are those of the published
    networks."""

    family_name: ClassVar[str] = "transfer2.5"

    control_every: Annotated[int, Range(1, 2**10)] = 7
    """Every so many blocks of the base, from the first one on, one is steered; each has a control block of
    its own."""
    branches: Annotated[int, Range(1, 16)] = 1
    """Controls at once, each with control blocks of its own."""
    hint_channels: Annotated[int, Range(1, 2**12)] = 128
    """The latent of each control is zero-padded to this many channels."""

    def rules(self) -> Iterator[Problem]:
        """How the sizes go together."""
        yield from super().rules()
        if self.hint_channels < self.latent_channels:
            yield (
                "hint_channels",
                f"{self.hint_channels} must be at least latent_channels {self.latent_channels}",
            )

    @property
    def controls(self) -> int:
        """As many as there are branches."""
        return self.branches

    @property
    def published_controls(self) -> tuple[str, ...]:
        """Of the published network with four branches."""
        return PUBLISHED if self.branches == len(PUBLISHED) else ()


def _network(config: Transfer25Config, dtype: torch.dtype) -> Transfer25:
    from cosmos_distill.models.transfer25.network import Transfer25

    return Transfer25(config, dtype=dtype)


PRESETS = {
    # 2.059 B parameters of Predict2.5 and 0.299 B of a branch; 84,480 tokens at 720p, 93 frames.
    "transfer2.5-2b": Transfer25Config(
        width=2048, blocks=28, heads=16, head_dim=128, text_projection=100_352, clean_condition_times=True,
    ),
    # Edge, vis, depth and seg at once, with a branch of 0.299 B for each.
    "transfer2.5-2b-multi": Transfer25Config(
        width=2048, blocks=28, heads=16, head_dim=128, text_projection=100_352, clean_condition_times=True,
        branches=4,
    ),
    # For tests of the machinery: learns nothing worth looking at.
    "transfer2.5-smoke": Transfer25Config(
        width=48, blocks=2, control_every=1, heads=2, head_dim=24, adaln_rank=8, text_dim=64,
        text_projection=64, text_tokens=8, max_frames=8, max_height=16, max_width=16, timestep_scale=30.0,
        hint_channels=16, clean_condition_times=True,
    ),
}  # fmt: skip
FAMILY = replace(
    predict25.FAMILY,
    title="Cosmos-Transfer2.5",
    config=Transfer25Config,
    presets=PRESETS,
    network=_network,
    names=Transfer25Names(),
    text=TextEncoder("Cosmos-Reason1.1-7B", "reason1", "reason1", CRUDE_GAME),
    weights_help=(
        "base and control blocks in one .safetensors or .pt file, or a pipeline folder of diffusers with "
        "transformer and controlnet"
    ),
    wall_seconds={"transfer2.5-smoke": 120.0},
)
