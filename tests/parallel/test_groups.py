"""One layout per process."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from cosmos_distill.config import Parallel
from cosmos_distill.parallel import groups, start


def test_initialize_is_idempotent():
    first = groups.initialize()
    assert groups.initialize() is first
    assert groups.initialize(first) is first
    assert groups.layout() == first == Parallel()
    assert dist.get_world_size() == groups.tensor_group().size() == 1


def test_a_second_layout_is_refused():
    groups.initialize()
    with pytest.raises(ValueError, match=r"laid out as .*tensor=1.*start a new one for .*tensor=2"):
        groups.initialize(Parallel(tensor=2))
    assert groups.layout() == Parallel()


def test_ranks_of_a_restart_do_not_meet_those_before():
    """The store keeps everything that the start before left in it, questions of its ranks included."""
    store, patience = dist.HashStore(), timedelta(seconds=20)
    store.set_timeout(patience)
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            # The last comes first, and waits.
            found = [pool.submit(start._name, store, rank, 3, patience) for rank in (2, 1, 0)]
            names.append({each.result() for each in found})
    assert [len(name) for name in names] == [1, 1] and names[0] != names[1]
