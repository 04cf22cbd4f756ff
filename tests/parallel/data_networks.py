"""Small networks for every kind of data parallelism, and whole tensors from ranks' pieces and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.config import Optim, Parallel
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear, enter
from cosmos_distill.parallel.parts import Part
from cosmos_distill.train.checkpoint import Piece
from cosmos_distill.train.optim import network_pieces

Results = dict[str, Any]
KINDS = {
    "replicated": Parallel(),
    "sharded_optimizer": Parallel(data="sharded_optimizer"),
    "fsdp": Parallel(data="fsdp"),
}
# With this eps a step grows with the gradient, so that a gradient of the wrong size shows, and one that is
# zero but for rounding does not.
OPTIM = Optim(lr=1e-2, weight_decay=0.1, clip_norm=0.4, eps=1e-2)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Network(nn.Module):
    """[B, 5] -> [B, 5]. Sizes that no number of ranks divides, a parameter without a gradient, and one that
    has one in the first half of the micro-batches only."""

    early = True

    def __init__(self, seed: int, blocks: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 5)
        if blocks:
            self.blocks = nn.ModuleList(Block(7) for _ in range(blocks))
        self.unused = nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(7))
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.early:
            x = x * self.sometimes
        for block in getattr(self, "blocks", ()):
            x = block(x)
        return self.last(x)


class TensorNetwork(nn.Module):
    """Like it with the block's matrices cut over the tensor-parallel ranks, and a scale per channel of a head
    whose gradient is a share."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 5)
        self.blocks = nn.ModuleList([nn.Module()])
        block = self.blocks[0]
        block.up = ColumnLinear(6, 8, dtype=torch.float32)
        block.scale = nn.Parameter(torch.ones(2))
        block.down = RowLinear(8, 6, dtype=torch.float32)
        block.forward = lambda x: (
            x + block.down((torch.tanh(block.up(enter(x))).unflatten(-1, (-1, 2)) * block.scale).flatten(-2))
        )
        initialise(self, seed)

    def parts(self) -> Mapping[str, Part]:
        cut = {"blocks.0.up.weight": Part(split=0), "blocks.0.down.weight": Part(split=1)}
        return {
            name: Part(sum_tensor=True) if name == "blocks.0.scale" else cut.get(name, Part())
            for name in self.state_dict()
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks[0](self.first(x)))


class StageNetwork(nn.Module):
    """A pipeline rank's blocks, of sizes of its own, and an embedding that all have: its gradient is a share,
    or, of ``entry``, one stage's. The loss is a sum over the stages."""

    def __init__(self, stages: list[int]) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 5)
        self.entry, self.unused = nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(3))
        self.blocks = nn.ModuleDict({str(i): nn.Linear(5 if i else 40, 5) for i in stages})
        initialise(self, 0)

    def parts(self) -> Mapping[str, Part]:
        return {
            name: Part(one_stage=True) if name.startswith("blocks") else Part(sum_pipeline=True)
            for name in self.state_dict()
        }

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return torch.stack(
            [s(x.repeat(1, 8) * self.entry if i == "0" else x) for i, s in self.blocks.items()]
        )


def initialise(network: nn.Module, seed: int) -> None:
    """The same weights under every layout."""
    pieces = network_pieces(network)
    fill(
        pieces,
        {name: 0.3 * sample(seed * 1000 + sum(map(ord, name)), p.shape)[0] for name, p in pieces.items()},
    )


def sample(index: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(index))


def gather(pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """The whole tensors that all ranks' pieces make up; checks that nothing is missing or contradictory."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(
        everyone, {k: (p.shape, [(b.offsets, b.value.clone()) for b in p.blocks]) for k, p in pieces.items()}
    )
    found: dict[str, Tensor] = {}
    for rank in everyone:
        for name, (shape, blocks) in rank.items():
            whole = found.setdefault(name, torch.full(shape, torch.nan, dtype=blocks[0][1].dtype))
            for offsets, value in blocks:
                box = tuple(slice(o, o + n) for o, n in zip(offsets, value.shape, strict=True))
                assert bool((whole[box].isnan() | (whole[box] == value)).all()), name
                whole[box] = value
    assert not any(bool(value.isnan().any()) for value in found.values())
    return found


def fill(pieces: Mapping[str, Piece], saved: Mapping[str, Tensor]) -> None:
    for name, piece in pieces.items():
        for block in piece.blocks if name in saved else ():
            at = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.value.shape, strict=True))
            with torch.no_grad():
                block.value.copy_(saved[name][at])
