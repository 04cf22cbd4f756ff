"""What the family is. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cosmos_distill.config import EDM
from cosmos_distill.diffusion.teacher import RES_2AB
from cosmos_distill.families import Family
from cosmos_distill.models.common.config import DiTConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class PlainConfig(DiTConfig):
    """Sizes of a network without a control."""

    family_name: ClassVar[str] = "plain"


def _network(config: PlainConfig, dtype: torch.dtype) -> nn.Module:
    from cosmos_distill.models.common.network import ControlledDiT

    return ControlledDiT(config, dtype=dtype)


FAMILY = Family(
    title="plain",
    config=PlainConfig,
    presets={
        "plain-tiny": PlainConfig(
            width=48, blocks=2, heads=2, head_dim=24, adaln_rank=8, text_dim=64, text_tokens=8,
            max_frames=8, max_height=16, max_width=16, timestep_scale=10.0,
        ),
    },
    network=_network,
    schedule=EDM,
    teacher=RES_2AB,
)  # fmt: skip
