"""Initial weights, keyed by tensor name.

Every tensor is drawn whole from a generator seeded by (seed, name) and then cut, so a network starts
from the same weights whatever the layout.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from cosmos_distill.models.common.network import ControlledDiT
from cosmos_distill.parallel import groups

STD = 0.02
"""Standard deviation of the time embedder and the position tables."""


def _zero(name: str, init: str) -> bool:
    """Tensors of every network that start at zero: biases, second AdaLN linear of a block and, in Predict2.5,
    of the final layer."""
    modulation = ".modulations." in name or (init == "truncated_normal" and ".modulation." in name)
    return (modulation and name.endswith("linear_2.weight")) or name.endswith(".bias")


def _draw(name: str, shape: list[int], init: str, generator: torch.Generator) -> torch.Tensor:
    """One whole tensor. Predict2.5: normal of standard deviation 1/sqrt(fan-in), cut at three of them.
    Transfer1: Xavier-uniform linears, normal time embedder and position tables."""
    if init == "truncated_normal":
        std = shape[-1] ** -0.5
        return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -3 * std, 3 * std, generator)
    if ".time_embed." in name or ".positions." in name:
        return torch.randn(shape, generator=generator) * STD
    bound = math.sqrt(6.0 / sum(shape))
    return torch.rand(shape, generator=generator) * (2 * bound) - bound


@torch.no_grad()
def initialize(network: ControlledDiT, seed: int) -> None:
    """Fill ``network`` in place, as ``config.init`` says."""
    init = network.config.init
    parts = network.parts()
    group = groups.tensor_group()
    for name, parameter in network.named_parameters():
        if _zero(name, init) or network.starts_at_zero(name):
            nn.init.zeros_(parameter)
        elif name.endswith(("norm.weight", "q_norm", "k_norm")):
            nn.init.ones_(parameter)
        else:
            shape = list(parameter.shape)
            if (dim := parts[name].split) is not None:
                shape[dim] *= group.size()
            digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            whole = _draw(name, shape, init, generator)
            if dim is not None:
                whole = whole.chunk(group.size(), dim=dim)[group.rank()]
            parameter.copy_(whole)
