"""Waiting for other ranks: by the key-value store of the launch, for as long as they show that they live.

A collective gives up after its timeout, whatever the rank that it waits for is doing: to score clips for an
hour is as wrong as to be dead. Before one that may have to wait for work, ranks wait here, where nothing
times out while every rank gives a sign of life now and then. torch is imported when there are several ranks.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

BEAT = 10.0
"""Seconds between two signs of life."""
SILENCE = 300.0
"""After so many seconds without one a rank counts as lost."""
_NAPS = 0.002, 0.5
_KEY = "cosmos_distill/waiting"


class RankLostError(RuntimeError):
    """A rank that others wait for shows no sign of life."""


class _Signs(threading.Thread):
    """This rank's signs of life, and how often it has come to each place."""

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="signs of life", daemon=True)
        self.store, self.rank, self.times = store, rank, Counter[str]()
        self._over = threading.Event()
        self.start()
        atexit.register(self.end)

    def run(self) -> None:
        """Give one now and then."""
        while not self._over.wait(BEAT):
            try:
                self.store.add(f"{_KEY}/alive/{self.rank}", 1)
            except Exception:
                return  # the store has gone with its node

    def end(self) -> None:
        """No thread may be inside torch when the interpreter goes."""
        self._over.set()
        self.join()
        atexit.unregister(self.end)

    def come(self, place: str) -> int:
        """Tell the others that this rank is there once more; returns how often it has been."""
        self.times[place] += 1
        self.store.add(f"{_KEY}/{place}", 1)
        self.store.add(f"{_KEY}/{place}/{self.rank}", 1)
        return self.times[place]

    def wait(self, place: str, count: int, times: int, whose: list[int]) -> None:
        """Until there have been ``count`` arrivals; the ranks ``whose`` are to come ``times`` times."""
        nap, longest = _NAPS
        alive: dict[int, tuple[int, float]] = {}
        looked = time.monotonic()
        while self.store.add(f"{_KEY}/{place}", 0) < count:
            if time.monotonic() - looked > BEAT:
                looked = time.monotonic()
                self._look(place, times, whose, alive)
            time.sleep(nap)
            nap = min(2 * nap, longest)

    def _look(self, place: str, times: int, whose: list[int], alive: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for rank in whose:
            if self.store.add(f"{_KEY}/{place}/{rank}", 0) >= times:
                continue
            signs = self.store.add(f"{_KEY}/alive/{rank}", 0)
            if rank not in alive or alive[rank][0] != signs:
                alive[rank] = signs, now
            elif now - alive[rank][1] > SILENCE:
                raise RankLostError(
                    f"rank {rank} has shown no sign of life for {now - alive[rank][1]:.0f} seconds, and this "
                    "one waits for it: see what it said last, and start the same command again"
                )


_current: list[_Signs] = []
_lock = threading.Lock()


def _signs() -> _Signs:
    """Of the process group that there is."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    with _lock:
        if _current and _current[0].store is not store:
            _current.pop().end()
        if not _current:
            _current.append(_Signs(store, dist.get_rank()))
        return _current[0]


def until_all_come(group: dist.ProcessGroup) -> None:
    """A barrier without a timeout: return when every rank of the group has come here as often as this one.

    Raises:
        RankLostError: one shows no sign of life.
    """
    import torch.distributed as dist

    signs, place = _signs(), f"all/{group.group_name}"
    times = signs.come(place)
    signs.wait(place, times * group.size(), times, dist.get_process_group_ranks(group))


def until_first_is_done(group: dist.ProcessGroup) -> None:
    """Return when rank 0 of the group has come here as often as this one; itself it does not wait.

    Raises:
        RankLostError: it shows no sign of life.
    """
    import torch.distributed as dist

    signs, place = _signs(), f"first/{group.group_name}"
    if group.rank() == 0:
        signs.come(place)
        return
    signs.times[place] += 1
    times = signs.times[place]
    signs.wait(place, times, times, [dist.get_global_rank(group, 0)])
