"""Work of several ranks that succeeds on all of them or fails on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from cosmos_distill.storage import DiskError
from cosmos_distill.train.checkpoint.errors import CheckpointError

T = TypeVar("T")


class Ranks:
    """The ranks of a group (None: this process alone), which go on only together.

    Every method is collective: all ranks call it, and all of them in the same order.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """Every rank does its ``work``; returns the results of all, by rank.

        Raises:
            CheckpointError: on every rank if one failed, with the first such rank's message, or DiskError if
                that was one. Alone, the error itself.
        """
        if self.group is None:
            return [work()]
        outcome: tuple[Any, tuple[bool, str] | None]
        cause: Exception | None = None
        try:
            outcome = (work(), None)
        except Exception as error:
            ours = isinstance(error, CheckpointError | DiskError)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            outcome, cause = (None, (isinstance(error, DiskError), text)), error
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, outcome, group=self.group)
        for rank, (_, problem) in enumerate(found):
            if problem is not None:
                kind = DiskError if problem[0] else CheckpointError
                raise kind(f"rank {rank}: {problem[1]}") from cause
        return [result for result, _ in found]

    def broadcast(self, work: Callable[[], T]) -> T:
        """Rank 0 does the ``work``; returns its result on every rank. Raises like :meth:`all_gather`."""
        rank_0: Callable[[], Any] = work if self.rank == 0 else _nothing
        result: T = self.all_gather(rank_0)[0]
        return result


def _nothing() -> None:
    return None
