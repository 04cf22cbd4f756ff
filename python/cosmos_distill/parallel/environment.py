"""What ``torchrun`` tells a process of its launch, through the environment. Torch-free."""

from __future__ import annotations

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """This process among those that were launched together."""

    world: int
    """Processes of the launch; 1 for one that was started alone."""
    rank: int
    local_rank: int
    """Rank among the processes of this machine: the number of its GPU."""


def launch() -> Launch:
    """The launch of this process; alone where nothing is said.

    Raises:
        ValueError: a variable does not hold what torchrun sets, named with its value.
    """
    world = _number("WORLD_SIZE", 1, 1)
    rank = _number("RANK", 0, 0)
    if rank >= world:
        raise ValueError(f"RANK={rank} must be below WORLD_SIZE, which is {world}: {_ADVICE}")
    return Launch(world, rank, _number("LOCAL_RANK", 0, 0))


def rendezvous() -> None:
    """Check that the environment says where the processes of a launch find each other.

    Raises:
        ValueError: a variable is missing or wrong.
    """
    world = launch().world
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ValueError(f"WORLD_SIZE is {world}, but {name} is not set: {_ADVICE}")
    _number("MASTER_PORT", 0, 1, 65_535)


_ADVICE = "torchrun sets all of them; start with it, or unset them"


def _number(name: str, default: int, low: int, high: int = 2**31 - 1) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ValueError(f"{name}={text!r} must be an integer from {low} to {high:,}: {_ADVICE}")
    return int(text)
