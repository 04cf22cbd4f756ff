"""Process groups of a run: one layout per process, set before the first network is built.

The ranks of one *model group* (tensor x context x pipeline) hold one copy of the networks between them and
act as one: each has the same samples, latents and losses, and only the inside of the networks is spread over
them. What differs between model groups is the samples: they are the data-parallel ranks.

Between several ranks the groups are Megatron-core's. A process alone is in one group, whichever is asked for,
and imports Megatron only for Megatron's own layers (:func:`megatron_config`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_distill.config import Parallel
from cosmos_distill.parallel import environment
from cosmos_distill.parallel.start import rendezvous

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig

_layout: Parallel | None = None
_model_group: dist.ProcessGroup | None = None
_background_group: dist.ProcessGroup | None = None
_background_backend = "gloo"


def connect(timeout: timedelta | None = None, *, alone: bool = False) -> None:
    """Find the other ranks, without a layout yet. Idempotent.

    Started by ``torchrun`` the ranks find each other through its environment; started alone, the
    process is a world of one that opens no socket. NCCL on a CUDA machine, gloo elsewhere.

    Args:
        timeout: after which a rank that waits for the others gives up; None: torch's default.
        alone: a world of one, whoever else was started.

    Raises:
        ValueError: the environment is not as torchrun sets it.
    """
    if dist.is_initialized():
        return
    # CPU tensors travel by gloo on a CUDA machine, too: batches and checkpoints.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    launched = {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not alone
    if launched and (environment.launch().world > 1 or "MASTER_ADDR" in os.environ):
        environment.rendezvous()
        if torch.cuda.is_available():
            torch.cuda.set_device(environment.launch().local_rank)
        store, rank, world = rendezvous(timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def initialize(parallel: Parallel | None = None, *, timeout: timedelta | None = None) -> Parallel:
    """Join the process group (:func:`connect`) and lay it out. Idempotent; returns the layout in force.

    Raises:
        ValueError: the layout differs from the one already in force, or does not divide the ranks.
    """
    global _layout, _model_group, _background_group
    if _layout is not None:
        if parallel is not None and parallel != _layout:
            raise ValueError(f"this process is laid out as {_layout}; start a new one for {parallel}")
        return _layout
    layout = parallel or Parallel()
    connect(timeout)
    if dist.get_world_size() % layout.model:
        raise ValueError(
            f"{dist.get_world_size()} ranks are not a multiple of tensor {layout.tensor} x context "
            f"{layout.context} x pipeline {layout.pipeline}: start a multiple of {layout.model}"
        )
    if dist.get_world_size() == 1:
        _layout, _model_group = layout, dist.group.WORLD
        return layout
    from cosmos_distill.parallel import megatron

    megatron.set_up(layout)
    _layout = layout
    _model_group, _ = dist.new_subgroups_by_enumeration(
        _model_groups(layout, dist.get_world_size()), backend=dist.get_backend_config()
    )
    _background_group = dist.new_group(backend=_background_backend)
    return layout


def _model_groups(layout: Parallel, world: int) -> list[list[int]]:
    """Ranks of each model group. Megatron numbers ranks tensor first, then context, data and pipeline."""
    inner, data = layout.tensor * layout.context, world // layout.model
    found = [[rank for rank in range(world) if rank // inner % data == n] for n in range(data)]
    assert dist.get_rank() in found[data_rank()], "Megatron numbers ranks in another order"
    return found


def leave() -> None:
    """Forget the layout and its groups, Megatron's with them, and end the process group, so that another can
    be chosen. Layers keep the groups that they were made with, and those of several ranks are of no use."""
    global _layout, _model_group, _background_group
    if "cosmos_distill.parallel.megatron" in sys.modules:
        from cosmos_distill.parallel.megatron import parallel_state

        parallel_state.destroy_model_parallel()
    _layout = _model_group = _background_group = None
    dist.destroy_process_group()


@contextmanager
def imagined(parallel: Parallel, *, data: int = 1, device: torch.device) -> Iterator[None]:
    """Inside the block this process is rank 0 of ``data`` copies of a layout whose other ranks do not exist:
    what is sent to them goes nowhere, and what comes from them has its size and no meaning.

    For counting what a rank does and holds, on the meta device above all. A world of one that there is
    already is left, and another one found when it is asked for again; its layers go on working.

    Args:
        device: where Megatron allocates what belongs on a GPU.

    Raises:
        RuntimeError: this process is one of several ranks.
    """
    global _background_backend
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend "fake"

    from cosmos_distill.parallel import cpu, megatron  # noqa: F401

    if dist.is_initialized():
        if dist.get_world_size() > 1:
            raise RuntimeError("a rank among others cannot imagine others: count before they are connected")
        leave()
    everywhere = f"cpu:fake,{device.type}:fake" if device.type != "cpu" else "cpu:fake"
    before, _background_backend = _background_backend, everywhere
    dist.init_process_group(everywhere, store=FakeStore(), rank=0, world_size=parallel.model * data)
    try:
        with cpu.in_place_of_cuda(device):
            initialize(parallel)
            yield
    finally:
        _background_backend = before
        leave()


@contextmanager
def borrowed(parallel: Parallel | None = None) -> Iterator[Parallel]:
    """Inside the block the process is laid out (:func:`initialize`). One that was alone and had no process
    group before has none afterwards, so that a caller may still start one of its own; nothing else is undone.
    """
    global _layout, _model_group
    found = dist.is_initialized()
    try:
        yield initialize(parallel)
    finally:
        # Megatron's layers keep the groups that they were made with.
        made = dist.is_initialized() and not found
        if made and dist.get_world_size() == 1 and "megatron.core" not in sys.modules:
            _layout = _model_group = None
            dist.destroy_process_group()


def layout() -> Parallel:
    """The layout in force; a process that never chose one is a single rank."""
    return initialize()


def world_group() -> dist.ProcessGroup:
    """All ranks."""
    layout()
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _group(name: str, **options: bool) -> dist.ProcessGroup:
    """The group that this function of Megatron's ``parallel_state`` returns."""
    world = world_group()
    if world.size() == 1:
        return world
    from cosmos_distill.parallel.megatron import parallel_state

    group: dist.ProcessGroup = getattr(parallel_state, name)(**options)
    return group


def tensor_group() -> dist.ProcessGroup:
    """Ranks that share every tensor-parallel weight."""
    return _group("get_tensor_model_parallel_group")


def context_group() -> dist.ProcessGroup:
    """Ranks that share the tokens of a clip."""
    return _group("get_context_parallel_group")


def pipeline_group() -> dist.ProcessGroup:
    """Ranks that share the blocks."""
    return _group("get_pipeline_model_parallel_group")


def model_group() -> dist.ProcessGroup:
    """Ranks that hold one copy of the networks and see the same samples."""
    layout()
    assert _model_group is not None
    return _model_group


def data_group() -> dist.ProcessGroup:
    """Ranks with the same part of the networks and other samples."""
    return _group("get_data_parallel_group", with_context_parallel=False)


def gradient_group() -> dist.ProcessGroup:
    """Ranks over which the gradients of a network are summed: other samples, or other tokens of the same."""
    return _group("get_data_parallel_group", with_context_parallel=True)


def background_group() -> dist.ProcessGroup | None:
    """All ranks, for a thread of its own beside the training: collectives of two threads must not mix. None
    in a world of one."""
    layout()
    return _background_group


def data_rank() -> int:
    """Which samples this rank sees: its index among the data-parallel ranks."""
    return data_group().rank()


def data_size() -> int:
    """Number of data-parallel ranks."""
    return data_group().size()


def all_reduce_sum(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``value`` summed in place over the group; returned for convenience."""
    if group.size() > 1:
        dist.all_reduce(value, group=group)
    return value


def tokens_group() -> dist.ProcessGroup:
    """Ranks that hold different tokens outside the tensor-parallel linears, in the order of the tokens."""
    return _group("get_tensor_and_context_parallel_group") if layout().sequence else context_group()


def megatron_config(dtype: torch.dtype, *, sequence: bool = False) -> ModelParallelConfig:
    """What Megatron's layers want to know, for weights of ``dtype``.

    Weights are allocated on the current default device (so ``with torch.device("meta")`` works) and
    left uninitialised: initial values are ours, keyed by global name, hence equal in every layout.
    """
    from cosmos_distill.parallel import megatron

    current = layout()
    megatron.set_up(current)
    return megatron.ModelParallelConfig(
        tensor_model_parallel_size=current.tensor,
        pipeline_model_parallel_size=current.pipeline,
        context_parallel_size=current.context,
        sequence_parallel=sequence,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
