"""Attention over a set of keys from attention over its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Partial results of :func:`attention` of the same queries over disjoint keys, merged into the whole.

    With ``lse = logsumexp_i lse_i`` the output is ``sum_i exp(lse_i - lse) out_i`` (blockwise attention,
    Liu et al. 2023, arXiv 2310.01889). Differentiable in everything; in fp32, fp64 for fp64.

    Args:
        outs: each [B, Sq, H, D].
        lses: log-sum-exp of each, [B, H, Sq]; at least one of a query's is finite.

    Returns:
        (out [B, Sq, H, D] in the dtype of the first part, lse [B, H, Sq] in fp32, fp64 for fp64).

    Raises:
        ValueError: there are no parts, as many outs as lses there are not, or a shape does not fit.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be as many, and at least one, not {len(outs)} and {len(lses)}")
    first = outs[0]
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.dim() != 4 or out.shape != first.shape:
            raise ValueError(
                f"outs[{i}] must be [B, Sq, H, D] like outs[0] {list(first.shape)}, not {list(out.shape)}"
            )
        expected = [first.shape[0], first.shape[2], first.shape[1]]
        if list(lse.shape) != expected:
            raise ValueError(
                f"lses[{i}] must be {expected} for outs of shape {list(first.shape)}, not {list(lse.shape)}"
            )
    wide = torch.promote_types(lses[0].dtype, torch.float32)
    parts = torch.stack([lse.to(wide) for lse in lses])
    whole = torch.logsumexp(parts, dim=0)
    weights = torch.exp(parts - whole).transpose(2, 3).unsqueeze(-1)
    merged = weights[0] * first.to(wide)
    for weight, out in zip(weights[1:], outs[1:], strict=True):
        merged = torch.addcmul(merged, weight, out.to(wide))
    return merged.to(first.dtype), whole
