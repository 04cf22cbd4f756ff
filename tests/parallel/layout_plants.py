"""Mistakes that the layouts' comparison must find, each made for the length of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from cosmos_distill.models.control import ControlledDiT
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.tokens import TokenSplit
from cosmos_distill.train import loop


@contextmanager
def parts_without(flag: str) -> Iterator[None]:
    """Gradients of shares are taken for whole ones."""
    plain = ControlledDiT.parts

    def parts(network: ControlledDiT) -> dict[str, Any]:
        return {name: replace(part, **{flag: False}) for name, part in plain(network).items()}

    with mock.patch.object(ControlledDiT, "parts", parts):
        yield


@contextmanager
def one_sum_forgotten() -> Iterator[None]:
    """The first sum of a large tensor over ranks, of all sums of the run, does not take place."""
    plain, forgotten = dist.all_reduce, []

    def all_reduce(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if tensor.numel() > 1000 and not forgotten:
            forgotten.append(tensor.numel())
            return None
        return plain(tensor, *args, **options)

    with mock.patch.object(dist, "all_reduce", all_reduce):
        yield


def padding_attended() -> AbstractContextManager[Any]:
    """The zeros behind a frame's last token count as keys."""
    return mock.patch.multiple(TokenSplit, real=lambda *_: None, real_of_all=lambda *_: None)


def one_rank_sees_the_others_samples() -> AbstractContextManager[Any]:
    """Data-parallel ranks draw the same samples, and noise."""
    return mock.patch.object(loop.groups, "data_rank", lambda: 0)


@contextmanager
def last_rank_fails() -> Iterator[None]:
    """One rank raises, while the others wait for it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        raise RuntimeError("planted")
    dist.barrier(groups.world_group())
    yield


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shares of tensor ranks are not added": lambda: parts_without("sum_tensor"),
    "shares of pipeline ranks are not added": lambda: parts_without("sum_pipeline"),
    "one sum forgotten": one_sum_forgotten,
    "padding attended": padding_attended,
    "the same samples on all ranks": one_rank_sees_the_others_samples,
    "the last rank fails": last_rank_fails,
}
