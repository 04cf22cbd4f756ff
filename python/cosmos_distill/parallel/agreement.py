"""Work of several ranks that succeeds on all of them or fails on all of them.

Where a rank fails alone, the others wait for it in their next collective until that gives up. While it works,
nothing does (:mod:`cosmos_distill.parallel.waiting`). Torch-free until there are several ranks.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from cosmos_distill.parallel import waiting

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")


class RankError(Exception):
    """Another rank failed, and this one with it: the cause of the copy that is raised here."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} failed")
        self.rank = rank
        """Of the group."""


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What work came to on a rank, as it can be sent to others."""

    result: T | None = None
    failed: bool = False
    text: str = ""
    pickled: bytes = b""
    """The exception; empty for one that cannot be."""

    def error(self) -> Exception:
        """A copy of the exception, or RuntimeError in the place of one whose class is not known here."""
        try:
            found = pickle.loads(self.pickled)
        except Exception:  # of a recipe's file, or with arguments that are not its constructor's
            found = None
        return found if isinstance(found, Exception) else RuntimeError(self.text)


def _try(work: Callable[[], T]) -> tuple[_Outcome[T], Exception | None]:
    """The outcome, and the exception itself."""
    try:
        return _Outcome(work()), None
    except Exception as error:
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        return _Outcome(failed=True, text=f"{type(error).__name__}: {error}", pickled=pickled), error


def _ranks(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group, by default of all ranks; None for a rank that is alone."""
    if group is None and "torch" in sys.modules:
        import torch.distributed as dist

        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    return group if group is not None and group.size() > 1 else None


def is_rank_zero() -> bool:
    """Whether this rank writes what exists once, logs for instance: rank 0 of all there are, or one alone."""
    ranks = _ranks(None)
    return ranks is None or ranks.rank() == 0


def on_rank_zero(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What ``work`` returns on rank 0, on every rank; it runs there only. All ranks of the group call this.

    Args:
        group: The ranks; None: all there are, which is this one where no process group has been made.

    Raises:
        Exception: On every rank, what ``work`` raised on rank 0: itself there, on the others a copy whose
            cause is a :class:`RankError`. What cannot be copied is a RuntimeError there.
    """
    ranks = _ranks(group)
    if ranks is None:
        return work()
    import torch.distributed as dist

    mine, error = _try(work) if ranks.rank() == 0 else (None, None)
    box = [mine]
    waiting.until_first_is_done(ranks)
    dist.broadcast_object_list(box, src=dist.get_global_rank(ranks, 0), group=ranks)
    return _agreed(box, {ranks.rank(): error})[0]


def all_gather(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank does its ``work``; returns the results of all, by rank. All ranks of the group call this.

    Args:
        group: As of :func:`on_rank_zero`.

    Raises:
        Exception: On every rank, what the first rank raised that failed; as :func:`on_rank_zero` does.
    """
    ranks = _ranks(group)
    if ranks is None:
        return [work()]
    import torch.distributed as dist

    mine, error = _try(work)
    found: list[_Outcome[T] | None] = [None] * ranks.size()
    waiting.until_all_come(ranks)
    dist.all_gather_object(found, mine, group=ranks)
    return _agreed(found, {ranks.rank(): error})


def _agreed(outcomes: Sequence[_Outcome[T] | None], mine: Mapping[int, Exception | None]) -> list[T]:
    """The results, if no rank failed; ``mine`` is what this one raised."""
    results = []
    for rank, outcome in enumerate(outcomes):
        assert outcome is not None
        if outcome.failed and (error := mine.get(rank)) is not None:
            raise error
        if outcome.failed:
            raise outcome.error() from RankError(rank)
        results.append(cast(T, outcome.result))
    return results


def is_shared(error: BaseException) -> bool:
    """Whether ``error`` is raised here because it was on another rank."""
    return isinstance(error.__cause__, RankError)
