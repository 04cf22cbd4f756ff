"""What Cosmos-Predict2.5 is: its sizes, and everything that the rest of the package asks of it.
Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cosmos_distill.config import TrigFlow
from cosmos_distill.diffusion.teacher import EULER_RF
from cosmos_distill.families import Family, TextEncoder
from cosmos_distill.models.common.config import DiTConfig, Ratio
from cosmos_distill.models.common.given import clean_frames
from cosmos_distill.models.common.prompts import POOR_QUALITY
from cosmos_distill.models.predict25.names import Predict25Names

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.common.network import ControlledDiT


@dataclass(frozen=True, kw_only=True)
class Predict25Config(DiTConfig):
    """A base network alone, without learnable positions. Defaults are those of the published networks."""

    family_name: ClassVar[str] = "predict2.5"

    learnable_positions: bool = False
    rope_ratio_t: Ratio = 1.0
    rope_ratio_hw: Ratio = 3.0
    fps_modulation: bool = False
    init: Literal["xavier", "truncated_normal"] = "truncated_normal"
    clean_condition_times: bool = False
    """The network was trained to be told that given frames have hardly any noise, instead of their sample's
    level."""


def _network(config: Predict25Config, dtype: torch.dtype) -> ControlledDiT:
    from cosmos_distill.models.common.network import ControlledDiT

    return ControlledDiT(config, dtype=dtype)


PRESETS = {
    # 2.059 B parameters, 0.103 B of them in the text projection; 84,480 tokens at 720p, 93 frames.
    "predict2.5-2b": Predict25Config(
        width=2048, blocks=28, heads=16, head_dim=128, text_projection=100_352,
        clean_condition_times=True,
    ),
    # 14.368 B parameters.
    "predict2.5-14b": Predict25Config(
        width=5120, blocks=36, heads=40, head_dim=128, text_projection=100_352,
    ),
    # 2.8 M parameters; 48 tokens: 5 frames of 32 x 32. c_noise is tau, within 0..1, which is less spread
    # than ln(sigma)/4: hence a larger scale than Transfer1's.
    "predict2.5-mini": Predict25Config(
        width=192, blocks=4, heads=6, head_dim=32, adaln_rank=48, text_dim=64, text_projection=64,
        text_tokens=8, max_frames=8, max_height=16, max_width=16, timestep_scale=30.0,
        clean_condition_times=True,
    ),
    # 2.8 M parameters; the film's 180 tokens.
    "predict2.5-film": Predict25Config(
        width=192, blocks=4, heads=3, head_dim=64, adaln_rank=48, text_dim=64, text_projection=64,
        text_tokens=4, max_frames=8, max_height=16, max_width=32, timestep_scale=30.0,
        clean_condition_times=True,
    ),
    "predict2.5-smoke": Predict25Config(
        width=48, blocks=2, heads=2, head_dim=24, adaln_rank=8, text_dim=64, text_projection=64,
        text_tokens=8, max_frames=8, max_height=16, max_width=16, timestep_scale=30.0,
        clean_condition_times=True,
    ),
}  # fmt: skip
FAMILY = Family(
    title="Cosmos-Predict2.5",
    config=Predict25Config,
    presets=PRESETS,
    network=_network,
    names=Predict25Names(),
    give_frames=clean_frames,
    schedule=TrigFlow,
    teacher=EULER_RF,
    tokenizers=("wan2.1",),
    text=TextEncoder("Cosmos-Reason1.1-7B", "reason1", "reason1", POOR_QUALITY),
    wall_seconds={"predict2.5-smoke": 90.0, "predict2.5-mini": 720.0},
)
