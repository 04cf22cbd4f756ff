"""Process groups of a run: one layout per process, set before the first network is built."""

from __future__ import annotations

import os
import warnings

import torch
import torch.distributed as dist

from cosmos_distill.config import Parallel

with warnings.catch_warnings():
    # Without Transformer Engine or Apex the import warns once per fallback; the fallbacks are what we use.
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig, parallel_state

_layout: Parallel | None = None


def initialize(parallel: Parallel | None = None) -> Parallel:
    """Join the process group and lay it out. Idempotent; returns the layout in force.

    Started by ``torchrun`` the ranks find each other through its environment; started alone, the
    process is a world of one that opens no socket. NCCL on a CUDA machine, gloo elsewhere.

    Raises:
        ValueError: the layout differs from the one already in force.
    """
    global _layout
    if _layout is not None:
        if parallel is not None and parallel != _layout:
            raise ValueError(f"this process is laid out as {_layout}; start a new one for {parallel}")
        return _layout
    layout = parallel or Parallel()
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
    )
    _layout = layout
    return layout


def layout() -> Parallel:
    """The layout in force; a process that never chose one is a single rank."""
    return initialize()


def tensor_group() -> dist.ProcessGroup:
    """Ranks that share every tensor-parallel weight."""
    layout()
    return parallel_state.get_tensor_model_parallel_group()


def megatron_config(dtype: torch.dtype) -> ModelParallelConfig:
    """What Megatron's layers want to know, for weights of ``dtype``.

    Weights are allocated on the current default device (so ``with torch.device("meta")`` works) and
    left uninitialised: initial values are ours, keyed by global name, hence equal in every layout.
    """
    current = layout()
    return ModelParallelConfig(
        tensor_model_parallel_size=current.tensor,
        pipeline_model_parallel_size=current.pipeline,
        context_parallel_size=current.context,
        sequence_parallel=current.sequence,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
