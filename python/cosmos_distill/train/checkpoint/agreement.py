"""The ranks that write and read checkpoints together, and the errors in which they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cosmos_distill.parallel import agreement
from cosmos_distill.storage import DiskError
from cosmos_distill.train.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    import torch.distributed as dist

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
        return [work()] if self.group is None else agreement.all_gather(self._ours(work), self.group)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Rank 0 does the ``work``; returns its result on every rank. Raises like :meth:`all_gather`."""
        return work() if self.group is None else agreement.on_rank_zero(self._ours(work), self.group)

    def _ours(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work, with errors of these two kinds that say where they were raised."""

        def tried() -> T:
            try:
                return work()
            except (CheckpointError, DiskError) as error:
                kind = DiskError if isinstance(error, DiskError) else CheckpointError
                raise kind(f"rank {self.rank}: {error}") from error
            except Exception as error:
                raise CheckpointError(f"rank {self.rank}: {type(error).__name__}: {error}") from error

        return tried
