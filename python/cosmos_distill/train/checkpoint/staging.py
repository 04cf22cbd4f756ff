"""What each rank writes of a checkpoint, and its copy on the CPU from which a thread can write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cosmos_distill.train.checkpoint.agreement import Ranks
from cosmos_distill.train.checkpoint.errors import CheckpointError
from cosmos_distill.train.checkpoint.pieces import Block, Piece


class Box(NamedTuple):
    """What a rank says of a block that it holds."""

    group: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.size) * self.dtype.itemsize


def boxes(groups: Mapping[str, Mapping[str, Piece]]) -> list[tuple[Box, Tensor]]:
    """Every block that this rank holds, with its memory."""
    return [
        (
            Box(group, name, block.value.dtype, piece.shape, block.offsets, tuple(block.value.shape)),
            block.value,
        )
        for group, pieces in groups.items()
        for name, piece in pieces.items()
        for block in piece.blocks
        if block.value.numel() or not prod(piece.shape)
    ]


def writers(held: Sequence[Sequence[Box]]) -> list[set[Box]]:
    """Which boxes each rank writes: every one once, by the rank with the least to write among its holders.

    Args:
        held: the boxes of every rank.

    Raises:
        CheckpointError: if the boxes of a tensor do not add up to it, or do not speak of the same one.
    """
    holders: dict[Box, list[int]] = {}
    for rank, mine in enumerate(held):
        for box in mine:
            holders.setdefault(box, []).append(rank)
    found: dict[tuple[str, str], tuple[tuple[int, ...], torch.dtype, int]] = {}
    for box in holders:
        shape, dtype, count = found.get(box[:2], (box.shape, box.dtype, 0))
        if (shape, dtype) != (box.shape, box.dtype):
            raise CheckpointError(
                f"{box.group}/{box.name} is {list(shape)} of {dtype} on one rank and {list(box.shape)} of "
                f"{box.dtype} on another: the ranks do not run the same networks"
            )
        found[box[:2]] = (shape, dtype, count + prod(box.size))
    for (group, name), (shape, _, count) in found.items():
        if count != prod(shape):
            raise CheckpointError(
                f"{group}/{name}: the ranks hold {count} of its {prod(shape)} elements, so it cannot be "
                "saved. This is a defect of the network's parts under this layout; another layout avoids it"
            )
    load, chosen = [0] * len(held), [set[Box]() for _ in held]
    # Those with one holder leave no choice; of the others the large ones first, to end up even.
    for box in sorted(holders, key=lambda box: (len(holders[box]) > 1, -box.bytes)):
        rank = min(holders[box], key=load.__getitem__)
        load[rank] += box.bytes
        chosen[rank].add(box)
    return chosen


class Staging:
    """Buffers on the CPU for what this rank writes, the same ones at every save (pinned beside a GPU)."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._boxes: list[Box] = []
        self._mine: set[Box] = set()
        self._buffers: dict[Box, Tensor] = {}

    def copy(self, groups: Mapping[str, Mapping[str, Piece]]) -> dict[str, dict[str, Piece]]:
        """What this rank writes of ``groups``, as it is now. Collective; overwrites what it returned before.

        Raises:
            CheckpointError: like :func:`writers`.
        """
        held = dict(boxes(groups))
        # The same boxes as last time, which is nearly always: no need to ask who writes them.
        if not all(self._ranks.all_gather(lambda: list(held) == self._boxes)):
            self._boxes = list(held)
            self._mine = writers(self._ranks.all_gather(lambda: self._boxes))[self._ranks.rank]
        self._ranks.all_gather(lambda: self._fill(held))
        staged: dict[str, dict[str, Piece]] = {group: {} for group in groups}
        for box, buffer in self._buffers.items():
            pieces = staged[box.group]
            before = pieces[box.name].blocks if box.name in pieces else ()
            pieces[box.name] = Piece(box.shape, (*before, Block(box.offsets, buffer)))
        return staged

    @torch.no_grad()
    def _fill(self, held: Mapping[Box, Tensor]) -> None:
        old, self._buffers = self._buffers, {}
        for box, value in held.items():
            if box in self._mine:
                buffer = old.get(box)
                if buffer is None:
                    buffer = torch.empty(box.size, dtype=box.dtype, pin_memory=value.is_cuda)
                self._buffers[box] = buffer.copy_(value, non_blocking=True)
        if any(value.is_cuda for value in held.values()):
            torch.cuda.current_stream().synchronize()
