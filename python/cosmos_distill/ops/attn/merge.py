"""Attention over a set of keys from attention over its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import floating, like, typed


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Partial results of :func:`attention` of the same queries over disjoint keys, merged into the whole.

    With ``lse = logsumexp_i lse_i`` the output is ``sum_i exp(lse_i - lse) out_i`` (blockwise attention,
    Liu et al. 2023, arXiv 2310.01889). Differentiable in everything; in fp32, fp64 for fp64.

    Args:
        outs: each [B, Sq, H, D], in one dtype.
        lses: log-sum-exp of each, [B, H, Sq], in one dtype; at least one of a query's is finite.

    Returns:
        (out [B, Sq, H, D] in the dtype of the first part, lse [B, H, Sq] in fp32, fp64 for fp64).

    Raises:
        ValueError: there are no parts or not as many outs as lses, or a shape, dtype, layout or device does
            not fit; the message names the argument.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be as many, and at least one, not {len(outs)} and {len(lses)}")
    first = outs[0]
    floating("outs[0]", first)
    if first.dim() != 4:
        raise ValueError(f"outs[0] must be [B, Sq, H, D], not {list(first.shape)}")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        like(f"outs[{i}]", out, first.shape, "outs[0]", first)
        typed(f"outs[{i}]", out, first.dtype)
        like(f"lses[{i}]", lse, (first.shape[0], first.shape[2], first.shape[1]), "outs[0]", first)
        typed(f"lses[{i}]", lse, lses[0].dtype)
    wide = torch.promote_types(lses[0].dtype, torch.float32)
    parts = torch.stack([lse.to(wide) for lse in lses])
    whole = torch.logsumexp(parts, dim=0)
    weights = torch.exp(parts - whole).transpose(2, 3).unsqueeze(-1)
    merged = weights[0] * first.to(wide)
    for weight, out in zip(weights[1:], outs[1:], strict=True):
        merged = torch.addcmul(merged, weight, out.to(wide))
    return merged.to(first.dtype), whole
