"""One command on all ranks of a ``torchrun`` launch: who writes, who speaks, and how all end together.

Rank 0 decides what depends on files and writes what exists once; the others wait for what it found. In a
world of one everything here is a plain call, and torch is not imported for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from cosmos_distill.config import Parallel
from cosmos_distill.errors import Refusal
from cosmos_distill.parallel.environment import launch, rendezvous

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Longest that a collective waits for a rank: inside a step, for example. Where one may have to wait for the
work of another they wait without (:mod:`cosmos_distill.parallel.waiting`). A rank that has died is noticed by
its launcher, not by this."""
_FAILED, _SAID = "cosmos_distill/failed", "cosmos_distill/said"
CHILD = "COSMOS_DISTILL_CHILD"
"""Environment variable of a run that a sweep has started."""
_POLL = 2.0
_PATIENCE, _GRACE = 10.0, 1.0


def world() -> int:
    """Ranks of this launch, as torchrun says.

    Raises:
        Refusal: the environment says what torchrun never does.
    """
    try:
        return launch().world
    except ValueError as error:
        raise Refusal(str(error)) from error


def is_main() -> bool:
    """Whether this process speaks and writes. Known before the ranks have found each other."""
    return world() == 1 or launch().rank == 0


def end_with_launcher() -> None:
    """From here on, end this process soon after the torchrun or the sweep that started it has gone, however
    that ended.

    A torchrun that is killed ends none of its ranks, and they may be in a collective that waits for half an
    hour. Nothing where another launcher, or none, started this process.
    """
    if {"TORCHELASTIC_RUN_ID", CHILD} & set(os.environ) and not _launched:
        _launched.append(threading.Thread(target=_watch_launcher, args=(os.getppid(),), daemon=True))
        _launched[0].start()


def _watch_launcher(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_POLL)
    try:
        rank = os.environ.get("RANK", "0")
        print(
            f"rank {rank}: what started it has gone, and this rank goes with it", file=sys.stderr, flush=True
        )
    finally:
        os._exit(1)


def connect() -> None:
    """Find the other ranks; from here on a rank that fails ends them all (see :func:`abort`).

    Raises:
        Refusal: the environment does not say where.
    """
    if world() == 1:
        return
    if not initialized():
        try:
            rendezvous()
        except ValueError as error:
            raise Refusal(str(error)) from error
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from cosmos_distill.parallel import groups

    get_error_handler().initialize()
    groups.connect(TIMEOUT)
    _watcher.append(_Watch(_store()))


def lay_out(parallel: Parallel) -> None:
    """Choose the layout of this process, before its first network is built."""
    from cosmos_distill.parallel import groups

    groups.initialize(parallel, timeout=TIMEOUT)


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on some rank, the same on all. All ranks call this."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed as dist

    from cosmos_distill.parallel import groups, waiting

    waiting.until_all_come(groups.world_group())
    found = torch.tensor(float(flag))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def abort(error: BaseException, status: int, say: Callable[[str], object], *, agreed: bool) -> NoReturn:
    """End this process, and with it the launch, because of ``error``.

    One rank speaks and is what torchrun's summary names: of a failure the first that comes here, since what
    the others met is mostly that it has gone. Nobody waits for an orderly shutdown, which could block in a
    collective or in a thread that waits for one.

    Args:
        say: told which rank speaks; nothing if it speaks for all.
        agreed: all ranks end for this reason, so that rank 0 speaks.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    store, rank = _store(), os.environ["RANK"]
    try:
        mine = is_main() if agreed else store.compare_set(_FAILED, "", rank) == rank.encode()
        if not mine and not _wait_for(store, _SAID):
            mine = agreed  # rank 0 knows nothing of it
        if mine:
            store.set(_FAILED, rank)
            say("" if agreed else f"rank {rank} of {world()}")
            store.set(_SAID, rank)
    except Exception as lost:  # torchrun's store goes with its node; this rank ends in any case
        print(f"rank {rank}: {lost}", file=sys.stderr)
        mine = False
    sys.stdout.flush()
    sys.stderr.flush()
    # torchrun names the rank that exits first, and ends those that still live. That should be one that was
    # killed, which cannot speak, else the one that spoke.
    time.sleep(_GRACE if mine else 3 * _GRACE)
    if mine and not agreed:
        get_error_handler().record_exception(error)
    os._exit(status)


def _wait_for(store: Any, key: str) -> bool:
    """Whether ``key`` is there within :data:`_PATIENCE`."""
    import torch.distributed as dist

    try:
        store.wait([key], timedelta(seconds=_PATIENCE))
    except dist.DistStoreError:
        return False
    return True


def finish() -> None:
    """Wait for the other ranks after a run that went well (a barrier), and end the process group."""
    if world() == 1:
        return
    import torch.distributed as dist

    from cosmos_distill.parallel import groups, waiting

    waiting.until_all_come(groups.world_group())
    dist.barrier()
    while _watcher:
        _watcher.pop().end()
    dist.destroy_process_group()


def wait_for_main() -> None:
    """Let rank 0 say what every rank has found out alone, before they were connected: wait until its end
    ends this process. Returns after a while, if rank 0 has found nothing."""
    if not is_main():
        time.sleep(_PATIENCE)


class _Watch(threading.Thread):
    """Ends this rank once another has failed: it may be in a collective that never returns."""

    def __init__(self, store: Any) -> None:
        super().__init__(name="watch", daemon=True)
        self._store, self._over = store, threading.Event()
        self.start()

    def run(self) -> None:
        """Look now and then."""
        while not self._over.wait(_POLL):
            try:
                failed = self._store.check([_FAILED]) and self._store.get(_FAILED).decode()
            except Exception:
                return  # the store has gone with its node
            if failed and failed != os.environ["RANK"]:
                time.sleep(_PATIENCE)  # most ranks notice by themselves, and leave in order
                os._exit(1)

    def end(self) -> None:
        """No thread may be inside torch when the interpreter goes."""
        self._over.set()
        self.join()


_watcher: list[_Watch] = []
_launched: list[threading.Thread] = []


def _store() -> Any:
    """torchrun's key-value store; it outlives every rank, and a restart begins with an empty one."""
    import torch.distributed.distributed_c10d as c10d

    return c10d._get_default_store()


def initialized() -> bool:
    """Whether this process is one of several that have found each other."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1


def scatter(values: Sequence[T] | None) -> Any:
    """Of rank 0's ``values`` that of this data-parallel rank; None for ranks that there is none for, and for
    those of a model group but its first. All ranks call this."""
    if world() == 1:
        assert values is not None
        return values[0]
    import torch.distributed as dist

    from cosmos_distill.parallel import groups, waiting

    if groups.model_group().rank() != 0:
        return None
    group = groups.data_group()
    waiting.until_first_is_done(group)
    given = None if values is None else [*values, *[None] * (group.size() - len(values))]
    box: list[Any] = [None]
    dist.scatter_object_list(box, given, src=0, group=group)
    return box[0]


def gather(value: T) -> Sequence[T] | None:
    """``value`` of every data-parallel rank, in order, on rank 0; None elsewhere. All ranks call this."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    from cosmos_distill.parallel import groups, waiting

    if groups.model_group().rank() != 0:
        return None
    group = groups.data_group()
    waiting.until_all_come(group)
    found: list[Any] | None = [None] * group.size() if is_main() else None
    dist.gather_object(value, found, dst=0, group=group)
    return found
