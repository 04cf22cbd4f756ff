"""How the fused operators may be sharded, for DTensor. Imported when the first DTensor reaches an operator.

Every registered operator can be replicated, and split along the axes that its declaration names
(:attr:`.declaration.Kinds.split`): what has such an axis is a shard, what lacks it is replicated among the
arguments and a partial sum among the results.

So all can be split over samples; adaptive LayerNorm also over frames and tokens, where the gradients of what
tokens share are sums; the rotary embedding also over heads, and over tokens unless its tables are factored,
for a shard is no grid; attention also over heads, and over queries, against which the gradients of keys and
values are sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from .declaration import DECLARED, Declaration
from .library import NAMESPACE, import_every_operator

Placements = list[Placement | None]


def _register(declared: Declaration) -> None:
    tensors = [one.kind is not None for one in declared.arguments]

    def sharding(*args: Any) -> list[tuple[list[Placement], Placements]]:
        there = [is_tensor and arg is not None for is_tensor, arg in zip(tensors, args, strict=False)]
        backend: Placements = [None]
        everywhere: Placements = [Replicate() if one else None for one in there]
        ways: list[tuple[list[Placement], Placements]] = [
            ([Replicate() for _ in declared.results], everywhere + backend)
        ]
        for out, into in declared.ways(*args):
            arguments: Placements = [
                None if not here else Replicate() if axis is None else Shard(axis)
                for here, axis in zip(there, into, strict=True)
            ]
            results: list[Placement] = [Partial() if axis is None else Shard(axis) for axis in out]
            ways.append((results, arguments + backend))
        return ways

    register_sharding(getattr(getattr(torch.ops, NAMESPACE), declared.name).default)(sharding)


import_every_operator()
for _declared in DECLARED.values():
    _register(_declared)
