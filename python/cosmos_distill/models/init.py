"""Initial weights of Transfer1, keyed by tensor name.

Every tensor is drawn whole from a generator seeded by (seed, name) and then cut, so a network starts
from the same weights whatever the layout.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from cosmos_distill.models.control import ControlledDiT
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear

STD = 0.02
"""Standard deviation of the time embedder and the position tables."""


def _zero(name: str) -> bool:
    """Tensors that start at zero: second AdaLN linear of a block, control residuals, last hint layer."""
    return (".modulations." in name and name.endswith("linear_2.weight")) or ".zero_blocks." in name


@torch.no_grad()
def initialize(network: ControlledDiT, seed: int) -> None:
    """Fill ``network`` in place: Xavier-uniform linears, zeros and ones where Transfer1 has them."""
    last_hint = f"control.hint_encoder.{len(network.control.hint_encoder) - 1}."
    split = {
        f"{name}.weight": 0 if isinstance(module, ColumnLinear) else 1
        for name, module in network.named_modules()
        if isinstance(module, ColumnLinear | RowLinear)
    }
    group = groups.tensor_group()
    for name, parameter in network.named_parameters():
        if _zero(name) or name.startswith(last_hint) or name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("norm.weight", "q_norm", "k_norm")):
            nn.init.ones_(parameter)
        else:
            shape = list(parameter.shape)
            if name in split:
                shape[split[name]] *= group.size()
            digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            if ".time_embed." in name or ".positions." in name:
                whole = torch.randn(shape, generator=generator) * STD
            else:
                bound = math.sqrt(6.0 / sum(shape))
                whole = torch.rand(shape, generator=generator) * (2 * bound) - bound
            if name in split:
                whole = whole.chunk(group.size(), dim=split[name])[group.rank()]
            parameter.copy_(whole)
