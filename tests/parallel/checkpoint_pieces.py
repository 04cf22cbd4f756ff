"""Tensors, and how the ranks of the checkpoint tests share them out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from cosmos_distill.parallel import groups
from cosmos_distill.parallel.fsdp import local
from cosmos_distill.parallel.parts import Part
from cosmos_distill.train.checkpoint import Piece, flat_piece, piece, whole


def tensors() -> dict[str, Tensor]:
    """What all layouts share out."""
    g = torch.Generator().manual_seed(0)
    return {
        "rows": torch.randn(8, 6, generator=g),
        "columns": torch.randn(4, 8, generator=g).bfloat16(),
        "flat": torch.randn(3, 5, 7, generator=g),
        "sharded": torch.randn(5, 2, generator=g),
        "same": torch.randn(100, generator=g),
        "step": torch.tensor(3.0),
        "count": torch.tensor(12),
        "early": torch.randn(4, generator=g),
        "late": torch.randn(4, generator=g),
    }


def averages() -> dict[str, Tensor]:
    """Of some of the tensors, in fp32."""
    return {name: value.float() * 0.3 for name, value in tensors().items() if value.dtype != torch.int64}


def pieces(rank: int, ranks: int, values: dict[str, Tensor], *, turned: bool) -> dict[str, Piece]:
    """A rank's share of ``values``; ``turned``: cut along other dimensions. ``early`` and ``late`` are on one
    of two pipeline ranks, the others of every kind there is: split, flat, sharded, replicated."""
    cut = {"rows": 1, "columns": 0} if turned else {"rows": 0, "columns": 1}
    tensor = groups.tensor_group()
    found = {
        name: piece(values[name].chunk(tensor.size(), dim)[tensor.rank()].contiguous(), Part(split=dim))
        for name, dim in cut.items()
    }
    value = values["flat"]
    bounds = [value.numel() * i // ranks + (3 if turned and 0 < i < ranks else 0) for i in range(ranks + 1)]
    first, last = bounds[rank : rank + 2]
    found["flat"] = flat_piece(value.flatten()[first:last].clone(), first, tuple(value.shape), Part())
    mesh = init_device_mesh("cpu", (ranks,))
    rows, span = local(distribute_tensor(values["sharded"], mesh, [Shard(0)]))
    found["sharded"] = flat_piece(rows.view(-1), span.first, span.shape, Part())
    found |= {name: whole(values[name].clone()) for name in ("same", "step", "count")}
    found |= {name: whole(values[name].clone()) for i, name in enumerate(("early", "late")) if rank % 2 == i}
    return found


def equal(found: dict[str, Piece], expected: dict[str, Piece]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(a.value, b.value)
        for name in found
        for a, b in zip(found[name].blocks, expected[name].blocks, strict=True)
    )
