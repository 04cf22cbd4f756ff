"""One layout per process."""

import pytest
import torch.distributed as dist

from cosmos_distill.config import Parallel
from cosmos_distill.parallel import groups


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
