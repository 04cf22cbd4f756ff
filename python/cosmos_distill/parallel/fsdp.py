"""Fully sharded networks: torch's FSDP2 (arXiv 2304.11277) over the ranks that sum gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cosmos_distill.parallel.share import HALF, Share, Span


class FsdpShare(Share):
    """A rank holds its rows (of dimension 0) of every parameter, gradient and moment.

    Gradients are reduce-scattered after every micro-batch and accumulated in fp32 as shards. Keeping them
    whole until the last one (``set_requires_gradient_sync``) would save a third of the messages, but cost
    every rank a whole fp32 gradient, which is what one shards for, and an abandoned step would leave it in
    FSDP's hands.

    Every forward pass is collective, also one without gradients: all ranks must take part.

    A half-precision gradient is added to its master's as soon as FSDP has summed it, before FSDP could add
    the next one to it in half precision: one call of a pipelined network sums several.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        held = {name: local(p) for name, p in parameters.items()}
        mesh = next(p for p in parameters.values() if isinstance(p, DTensor)).device_mesh
        super().__init__(
            network,
            parameters,
            {name: value for name, (value, _) in held.items()},
            {name: span for name, (_, span) in held.items()},
            mesh.size(mesh.ndim - 1),
        )
        self._like = self.masters  # pipeline ranks that have a gradient in common have the same rows of it
        self._hooks = [
            p.register_post_accumulate_grad_hook(_move_gradient_to(self.masters[name]))
            for name, p in self.parameters.items()
        ]

    def reduce_data(self) -> None:
        """FSDP has summed already."""

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.requires_grad_(True)
        self.zero_grad()


@runtime_checkable
class Trunks(Protocol):
    """A network that says by itself what is sharded together."""

    def trunks(self) -> Mapping[nn.Module, Sequence[nn.Module]]:
        """Modules that are called as a whole, and of each the blocks inside it."""


def shard(network: nn.Module, group: dist.ProcessGroup, shards: int | None) -> None:
    """Spread the weights of ``network`` over the group, block by block, in place. Collective.

    Blocks are the modules in its lists or dictionaries called ``blocks``, or those that the network names
    (:class:`Trunks`); what a module with such a list has beside them is a unit of its own, gathered while
    that module is called. The network is none: a pipelined one calls its parts many times before a call of
    it returns. One without blocks is left whole.

    Args:
        shards: ranks that share a copy, neighbours in the group; None: all of it.

    Raises:
        ValueError: ``shards`` does not divide the group, or a parameter is in no module with blocks.
        RuntimeError: this torch cannot sum gradients without dividing them on every backend.
    """
    trunks = network.trunks() if isinstance(network, Trunks) else _with_blocks(network)
    if not trunks:
        return
    size = group.size()
    if size % (shards or size):
        raise ValueError(f"fsdp_shards {shards} does not divide the {size} ranks that share a network")
    inside = {p for trunk in trunks for p in trunk.parameters()}
    if outside := [name for name, p in network.named_parameters() if p not in inside]:
        raise ValueError(f"fsdp cannot spread {outside[0]!r}: it is in no module that has blocks")
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise RuntimeError(f'data "fsdp" needs a newer torch than {torch.__version__} (tested: 2.13)')
    like = next(network.parameters())
    mesh = _mesh(group, like.device.type, shards or size)
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if like.dtype in HALF else None)
    for module in (*itertools.chain(*trunks.values()), *trunks):
        # Not even the outermost unit stays gathered after a forward pass: a pass without gradients would
        # leave it so over a step, and with it the old weights and the old requires_grad.
        unit = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)  # a sum
        unit.set_force_sum_reduction_for_comms(True)  # of plain kind: gloo knows no scaled one
        module.register_forward_hook(_reshard_if_replayed)
    for trunk in trunks:
        # FSDP chooses the type to sum in at the first forward pass, from the parameters that are trainable
        # then. A role may be frozen in it, so the choice is made now, and there is no public name for that.
        fully_shard.state(trunk)._lazy_init()  # type: ignore[attr-defined]


def _with_blocks(network: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    return {
        module: list(found.values() if isinstance(found, nn.ModuleDict) else found)
        for module in network.modules()
        if isinstance(found := getattr(module, "blocks", None), nn.ModuleList | nn.ModuleDict)
    }


def is_sharded(network: nn.Module) -> bool:
    """Whether :func:`shard` spread it."""
    return any(isinstance(module, FSDPModule) for module in network.modules())


_replaying = ContextVar("replaying", default=False)


@contextmanager
def replay() -> Iterator[None]:
    """Around a forward pass that is made in the course of an outer backward pass and has its own one later.

    Inside any backward pass FSDP takes a forward pass for the recomputation of a block that is about to be
    differentiated, and leaves it gathered.
    """
    token = _replaying.set(True)
    try:
        yield
    finally:
        _replaying.reset(token)


def _reshard_if_replayed(module: nn.Module, inputs: Any, output: Any) -> None:
    if _replaying.get():
        assert isinstance(module, FSDPModule)
        module.reshard()


@torch.no_grad()
def local(value: Tensor) -> tuple[Tensor, Span]:
    """What this rank holds of a parameter, the memory itself, and which share that is."""
    if not isinstance(value, DTensor):
        return value, Span(0, tuple(value.shape))
    mesh, rows = value.device_mesh, value.shape[0]
    step = -(-rows // mesh.size(mesh.ndim - 1))
    first = min(rows, step * mesh.get_local_rank(mesh.ndim - 1))
    return value.to_local(), Span(first * (value.numel() // max(rows, 1)), tuple(value.shape))


@cache
def _mesh(group: dist.ProcessGroup, device: str, shards: int) -> DeviceMesh:
    """The group as [copies, shards], or [shards] without copies."""
    if shards == group.size():
        return DeviceMesh.from_group(group, device)
    # Groups are made by all ranks together: the mesh holds every such group of the run.
    everyone: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, dist.get_process_group_ranks(group))
    ranks = torch.tensor(sorted(set(map(tuple, everyone)))).unflatten(1, (-1, shards))
    mesh = DeviceMesh(device, ranks, mesh_dim_names=("networks", "copies", "shards"))
    return mesh["copies", "shards"]


def _move_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    """What FSDP left as the weights' type is added up in the master's."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = local(parameter.grad)[0].to(master.dtype)
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return hook
