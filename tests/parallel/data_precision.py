"""What data-parallel ranks add up in half precision, what they gather for it, and what is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cosmos_distill.config import Parallel
from cosmos_distill.models import build
from cosmos_distill.models.common.blocks import Block
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.parallel import data, fsdp, groups
from cosmos_distill.train.optim import RoleOptimizer
from tests.parallel.data_networks import KINDS, OPTIM, Results, initialise, sample


def sums(kind: Parallel) -> Tensor:
    """A gradient of bf16 numbers that bf16 cannot add up, of a role that was frozen at first."""
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(1, 1, bias=False)])
    network.forward = lambda x: network.blocks[0](x)
    network.bfloat16()
    data.shard(network, kind)
    optimizer = RoleOptimizer(network, OPTIM, 10, kind)
    optimizer.requires_grad_(False)
    x = torch.full((1, 1), 256.0 if groups.data_rank() == 2 else 1.0, dtype=torch.bfloat16)
    network(x)
    optimizer.requires_grad_(True)
    with optimizer.backward_of(True):
        network(x).sum().backward()
    optimizer.reduce()
    return optimizer.gradient_norm()


def refused(network: nn.Module, shards: int | None = None) -> str:
    try:
        fsdp.shard(network, groups.gradient_group(), shards)
    except ValueError as error:
        return str(error)
    return ""


def micro_batches(together: bool) -> Results:
    """Gradients of a sharded, pipelined network in half precision, from one call of it or from one per
    micro-batch, and the most blocks that a rank had gathered when one of them was called."""
    network = build(PRESETS["transfer1-mini"], dtype=torch.bfloat16, seed=None)
    initialise(network, 1)
    data.shard(network, KINDS["fsdp"])
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    gathered: list[int] = []

    def count(*_: Any) -> None:
        gathered.append(sum(not isinstance(next(b.parameters()), DTensor) for b in blocks))

    for block in blocks:
        block.register_forward_pre_hook(count)
    optimizer = RoleOptimizer(network, OPTIM, 10, KINDS["fsdp"])
    x = torch.cat([sample(4 * groups.data_rank() + i, (16, 2, 4, 6)) for i in range(4)]).bfloat16()
    for part in [x] if together else x.split(1):
        with optimizer.backward_of(True):
            t, text = torch.full((len(part),), 0.3), sample(0, (8, 64)).expand(len(part), -1, -1)
            network(part, t, text.bfloat16(), hint=part.flip(-1)).float().square().sum().backward()
    optimizer.reduce()
    found = {name: m.grad for name, m in optimizer.masters.items() if m.grad is not None}
    assert found
    return {"gradients": found, "gathered": max(gathered), "blocks": len(blocks)}
