"""Where the ranks of one start find each other."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

_PAUSE = 0.02


def rendezvous(timeout: timedelta | None = None) -> tuple[dist.Store, int, int]:
    """A store of this start alone, the rank and the number of ranks, by the environment of ``torchrun``.

    Its own store outlives a restart of the ranks, and with it the addresses of those that have gone, to which
    the new ones would try to connect (torch 2.13; earlier releases kept starts apart). Nothing in the
    environment tells starts on several machines apart, so rank 0 gives each a name.
    """
    patience = timeout or timedelta(minutes=30)
    store, rank, world = next(torch_rendezvous("env://", timeout=patience))
    return dist.PrefixStore(_name(store, rank, world, patience), store), rank, world


def _name(store: dist.Store, rank: int, world: int, patience: timedelta) -> str:
    """The name of this start, the same on all ranks. Keys of earlier starts are still there: a question has
    the name of who asks, and an answer that of the question."""
    mine = f"{os.getpid()}-{uuid4().hex}"
    if rank:
        store.set(f"asks/{rank}", mine)
        name: str = store.get(f"answer/{mine}").decode()
        store.set(f"has/{name}/{rank}", "")
        return name
    missing, end = set(range(1, world)), time.monotonic() + patience.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", mine)
            if store.check([f"has/{mine}/{other}"]):
                missing.remove(other)
        if time.monotonic() > end:
            raise TimeoutError(f"ranks {sorted(missing)} did not come within {patience}: see what they said")
        time.sleep(_PAUSE)
    return mine
