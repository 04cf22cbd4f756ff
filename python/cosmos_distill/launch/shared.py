"""Between the ranks of a launch: batches that one rank reads, and clips that several draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_distill.data.batch import Batch
from cosmos_distill.launch import ranks
from cosmos_distill.parallel import groups

if TYPE_CHECKING:
    from cosmos_distill.data.prefetch import Prefetch
    from cosmos_distill.data.sources import Source


T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


class Shared:
    """The samples of a model group: its first rank reads them, the others are given copies.

    An error of the source is raised by the rank that reads, and ends the run.

    Args:
        source: of the rank that :meth:`reads`; the others have no use for one.
    """

    def __init__(self, source: Source | Prefetch | None) -> None:
        self._source = source

    @staticmethod
    def reads() -> bool:
        """Whether this rank is the one that reads."""
        return groups.model_group().rank() == 0

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1. All ranks of the model group ask for the same."""
        return broadcast_batch(self._source.batch(first, count) if self._source else None)

    def description(self) -> dict[str, Any]:
        """That of rank 0's source, with the clips that any rank had to skip. All ranks call this."""
        found = ranks.gather(getattr(self._source, "skipped", {}))
        if not ranks.is_main():
            return {}
        assert self._source is not None and found is not None
        skipped = {name: reason for each in found for name, reason in each.items()}
        return self._source.description() | {"skipped": [f"{name}: {why}" for name, why in skipped.items()]}


def broadcast_batch(batch: Batch | None) -> Batch:
    """The batch of the model group's first rank, on the CPU, on all of its ranks. They need not give any."""
    group = groups.model_group()
    if group.size() == 1:
        assert batch is not None
        return batch
    source = dist.get_global_rank(group, 0)
    box: list[Any] = [None]
    tensors: dict[str, Tensor] = {}
    if batch is not None and group.rank() == 0:
        tensors = {name: value.cpu().contiguous() for name, value in batch.tensors().items()}
        box = [(batch.first, batch.names, {name: (v.shape, v.dtype) for name, v in tensors.items()})]
    dist.broadcast_object_list(box, src=source, group=group)
    first, names, described = box[0]
    for name, (shape, dtype) in described.items():
        if group.rank() != 0:
            tensors[name] = torch.empty(shape, dtype=dtype)
        dist.broadcast(tensors[name], src=source, group=group)
    return Batch.of(first, tensors, names)


def handed_out(
    tasks: Sequence[U],
    prepared: Callable[[U], V],
    work: Callable[[U, V], T],
    between: Callable[[], None],
) -> Iterator[tuple[U, T]]:
    """(task, ``work(task, prepared(task))``) of every task, in order, on rank 0; nothing on the others.

    Rank 0 prepares, the first rank of every model group works, a task at a time. Every rank has to run
    through this, with the same tasks.

    Args:
        between: as of :func:`drawn`.
    """
    size = groups.data_size()
    for begin in range(0, len(tasks), size):
        between()
        round_ = tasks[begin : begin + size]
        given = ranks.scatter([prepared(task) for task in round_] if ranks.is_main() else None)
        mine = round_[groups.data_rank() :][:1] if Shared.reads() else []
        made = ranks.gather([work(task, given) for task in mine])
        for task, parts in zip(round_, made or [], strict=False):
            yield task, parts[0]


def drawn(
    pieces: Sequence[tuple[int, int]],
    draw: Callable[[int, int], T],
    between: Callable[[], None],
    collective: bool = False,
) -> Iterator[T]:
    """``draw(first, count)`` of every piece, in order, on rank 0; nothing on the others.

    The data-parallel ranks draw different pieces at the same time, each as one rank would draw it, so that
    the result does not depend on their number. Every rank has to run through this.

    Args:
        pieces: (first sample, count) each.
        between: called on all ranks before each round of pieces; may raise, on all of them.
        collective: all data-parallel ranks take part in each drawing: those of a round are of one count, and
            a rank that there is no piece for draws the last one, too, for the others' sake.
    """
    for round_ in _rounds(pieces, groups.data_size(), collective):
        between()
        mine = round_[groups.data_rank() :][:1]
        made = [draw(*piece) for piece in mine or (round_[-1:] if collective else [])]
        for found in ranks.gather(made if mine else []) or []:
            yield from found


def _rounds(pieces: Sequence[tuple[int, int]], size: int, alike: bool) -> Iterator[Sequence[tuple[int, int]]]:
    """Up to ``size`` pieces that follow each other, all of one count where they have to be ``alike``."""
    runs = [list(run) for _, run in groupby(pieces, key=lambda piece: piece[1])] if alike else [pieces]
    for run in runs:
        for begin in range(0, len(run), size):
            yield run[begin : begin + size]
