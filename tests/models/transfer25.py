"""Small Transfer2.5 networks with every weight random, and what they are called with."""

from __future__ import annotations

import dataclasses

import torch

from cosmos_distill.models import build
from cosmos_distill.models.transfer25.config import Transfer25Config
from cosmos_distill.models.transfer25.network import Transfer25
from tests.real_formats.networks import randomize

TINY = Transfer25Config(
    width=40, blocks=5, control_every=2, heads=2, head_dim=20, adaln_rank=6, text_dim=24, text_tokens=5,
    text_projection=28, max_frames=4, max_height=12, max_width=16, hint_channels=20,
    clean_condition_times=True,
)  # fmt: skip
SEVERAL = dataclasses.replace(TINY, branches=3)


def made(config: Transfer25Config = TINY, dtype: torch.dtype = torch.float64, seed: int = 1) -> Transfer25:
    """The network, random also where it starts at zero."""
    network = build(config, dtype=dtype, seed=None)
    assert isinstance(network, Transfer25)
    randomize(network, seed)
    return network


def with_hint(given: dict[str, torch.Tensor], channels: int = 16) -> dict[str, torch.Tensor]:
    """The arguments of a forward pass, and a control."""
    b, _, *size = given["x"].shape
    g = torch.Generator().manual_seed(11)
    hint = torch.randn((b, channels, *size), generator=g, dtype=torch.float64)
    return given | {"hint": hint.to(given["x"].dtype)}
