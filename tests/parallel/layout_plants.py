"""Mistakes that the layouts' comparison must find, each made for the length of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from cosmos_distill.models.common.network import ControlledDiT
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.buffers import BufferedShare
from cosmos_distill.parallel.fsdp import FsdpShare
from cosmos_distill.parallel.parts import Part
from cosmos_distill.parallel.share import PlainShare, Share
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
def last_rank_drifts() -> Iterator[None]:
    """What the last rank finds for itself of gradients that others find as well is a little off."""
    with ExitStack() as stack:
        for kind in (PlainShare, BufferedShare, FsdpShare) if is_last() else ():
            plain = kind.reduce_data

            def reduce_data(share: Any, plain: Callable[[Any], None] = plain) -> None:
                plain(share)
                for name in copied(share):
                    if (gradient := share.masters[name].grad) is not None:
                        gradient.mul_(1.01)

            stack.enter_context(mock.patch.object(kind, "reduce_data", reduce_data))
        yield


def copied(share: Share) -> list[str]:
    """Parameters whose gradient several ranks of a model group find, each for itself."""
    layout = groups.layout()
    if all(part == Part() for part in share.parts.values()):
        return list(share.parts) if layout.model > 1 else []  # a discriminator
    return [
        name
        for name, part in share.parts.items()
        if (layout.tensor > 1 and part.split is None and not part.sum_tensor)
        or (layout.pipeline > 1 and isinstance(share, BufferedShare) and not part.one_stage)
    ]


def is_last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


@contextmanager
def last_rank_fails() -> Iterator[None]:
    """One rank raises, while the others wait for it."""
    if is_last():
        raise RuntimeError("planted")
    dist.barrier(groups.world_group())
    yield


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shares of tensor ranks are not added": lambda: parts_without("sum_tensor"),
    "shares of pipeline ranks are not added": lambda: parts_without("sum_pipeline"),
    "one sum forgotten": one_sum_forgotten,
    "padding attended": padding_attended,
    "the same samples on all ranks": one_rank_sees_the_others_samples,
    "the last rank's copies drift": last_rank_drifts,
    "the last rank fails": last_rank_fails,
}
