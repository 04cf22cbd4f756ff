"""Megatron-core, imported in one place, with its warnings of missing extras silenced and its devices adapted.

Nothing that one process needs for a network without Megatron's layers imports this module.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Without Transformer Engine or Apex the import warns once per fallback; the fallbacks are what we use.
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig, parallel_state

    from cosmos_distill.parallel import cpu

    cpu.adapt()

from cosmos_distill.config import Parallel

__all__ = ["ModelParallelConfig", "parallel_state", "set_up"]


def set_up(layout: Parallel) -> None:
    """Make Megatron's process groups for ``layout``. Idempotent; collective."""
    if parallel_state.model_parallel_is_initialized():
        return
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=(
            layout.virtual_pipeline if layout.virtual_pipeline > 1 else None
        ),
        context_parallel_size=layout.context,
        create_gloo_process_groups=False,  # of Megatron's own checkpoints and optimiser, which are not used
    )
