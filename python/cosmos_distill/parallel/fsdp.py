"""Fully sharded networks: torch's FSDP2 (arXiv 2304.11277) over the ranks that sum gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

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

    @contextmanager
    def backward_of(self, last: bool) -> Iterator[None]:
        yield
        self.reduce_data()

    def reduce_data(self) -> None:
        """FSDP has summed already, in fp32; what it left as the weights' type is added up in the masters'."""
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            master = self.masters[name]
            gradient = local(p.grad)[0].to(master.dtype)
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            p.grad = None

    def close(self) -> None:
        self.requires_grad_(True)
        self.zero_grad()


def shard(network: nn.Module, group: dist.ProcessGroup, shards: int | None) -> None:
    """Spread the weights of ``network`` over the group, block by block, in place. Collective.

    Blocks are the modules in its lists or dictionaries called ``blocks``; the rest is a unit of its own. A
    module without blocks is left whole.

    Args:
        shards: ranks that share a copy, neighbours in the group; None: all of it.

    Raises:
        ValueError: ``shards`` does not divide the group.
        RuntimeError: this torch cannot sum gradients without dividing them on every backend.
    """
    blocks = [
        block
        for name, module in network.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList | nn.ModuleDict)
        for block in (module.values() if isinstance(module, nn.ModuleDict) else module)
    ]
    if not blocks:
        return
    size = group.size()
    if size % (shards or size):
        raise ValueError(f"fsdp_shards {shards} does not divide the {size} ranks that share a network")
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise RuntimeError(f'data "fsdp" needs a newer torch than {torch.__version__} (tested: 2.13)')
    like = next(network.parameters())
    mesh = _mesh(group, like.device.type, shards or size)
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if like.dtype in HALF else None)
    for module in (*blocks, network):
        # Not even the outermost unit stays gathered after a forward pass: a pass without gradients would
        # leave it so over a step, and with it the old weights and the old requires_grad.
        unit = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)  # a sum
        unit.set_force_sum_reduction_for_comms(True)  # of plain kind: gloo knows no scaled one
    # FSDP chooses the type to sum in at the first forward pass, from the parameters that are trainable then.
    # A role may be frozen in it, so the choice is made now, and there is no public name for that.
    fully_shard.state(network)._lazy_init()  # type: ignore[attr-defined]


def is_sharded(network: nn.Module) -> bool:
    """Whether :func:`shard` spread it."""
    return isinstance(network, FSDPModule)


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
