"""Selective activation checkpointing (Korthikanti et al. 2022, arXiv 2205.05198) by operator."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from . import attn  # noqa: F401  # registers the operator

# What attention consists of, ours and torch's: each returns the output and its log-sum-exp.
_ATEN = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def keep_attention() -> tuple[Any, Any]:
    """Keep the results of attention, the output and its log-sum-exp, and recompute everything else.

    Attention is most of the work of a long sequence and little of its memory; with both results kept, the
    backward pass runs none of it a second time. Use it as

        ``torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False, context_fn=ops.keep_attention)``

    It knows :func:`cosmos_distill.ops.attention` under every backend but ``reference``, whose attention is
    recomputed like all plain torch, and torch's own scaled_dot_product_attention.
    """
    kept = [torch.ops.cosmos_distill.attention.default]
    kept += [getattr(torch.ops.aten, name).default for name in _ATEN if hasattr(torch.ops.aten, name)]
    return create_selective_checkpoint_contexts(kept)
