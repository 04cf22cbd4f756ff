"""Attention between all tokens of a clip whose tokens are split over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.tokens import TokenSplit

# Before anything else of Megatron, which it silences.
from cosmos_distill.parallel import megatron  # noqa: F401  # isort: skip
from megatron.core.tensor_parallel import mappings  # isort: skip


def attention(q: Tensor, k: Tensor, v: Tensor, split: TokenSplit) -> Tensor:
    """Full self-attention, without regard to padding.

    Args:
        q: [B, S, heads, head_dim], tokens and heads that this rank has inside its tensor-parallel linears.
        k: the same.
        v: the same.
        split: where these tokens stand in the clip.

    Returns:
        The output of these queries, [B, S, heads, head_dim]; that of padding means nothing.
    """
    if groups.context_group().size() == 1:
        k, v = _without_padding(k, v, split.real_of_all(k.device))
        return ops.attention(q, k, v)
    if groups.layout().context_attention == "ulysses":
        return _ulysses(q, k, v, split)
    return _ring(q, k, v, split)


def _without_padding(k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    return (k, v) if real is None else (k.index_select(1, real), v.index_select(1, real))


def _ulysses(q: Tensor, k: Tensor, v: Tensor, split: TokenSplit) -> Tensor:
    """All tokens of a share of the heads on every rank (Jacobs et al. 2023, arXiv 2309.14509)."""
    group = groups.context_group()
    ranks = group.size()
    b, s, heads, dim = q.shape
    # [3, B, S, ranks, heads/ranks, dim] -> one message per rank -> [ranks of the tokens, 3, B, S, ...]
    packed = torch.stack([q, k, v]).unflatten(3, (ranks, heads // ranks)).movedim(3, 0)
    tokens = mappings.all_to_all(group, packed.contiguous())
    q, k, v = tokens.permute(1, 2, 0, 3, 4, 5).reshape(3, b, ranks * s, heads // ranks, dim)
    k, v = _without_padding(k, v, split.real_of_all(k.device))
    out = ops.attention(q, k, v).unflatten(1, (ranks, s)).movedim(1, 0)
    by_heads = mappings.all_to_all(group, out.contiguous())
    return by_heads.permute(1, 2, 0, 3, 4).reshape(b, s, heads, dim)


def _ring(q: Tensor, k: Tensor, v: Tensor, split: TokenSplit) -> Tensor:
    """Keys and values go round while the queries stay (Liu et al. 2023, arXiv 2310.01889)."""
    out: Tensor = _Ring.apply(q, k, v, split)
    return out


class _Ring(torch.autograd.Function):
    """Keeps q, k, v of this rank, its output and log-sum-exp; backward, keys and values go round again, and
    with them the sums of their gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, split: TokenSplit) -> Tensor:
        group = groups.context_group()
        outs, lses = [], []
        pair = torch.stack([k, v])
        for hop in range(group.size()):
            arriving = _pass_on([pair], group) if hop + 1 < group.size() else None
            real = split.real((group.rank() - hop) % group.size(), k.device)
            part_k, part_v = _without_padding(pair[0], pair[1], real)
            if part_k.shape[1]:
                part, lse = ops.attention(q, part_k, part_v, return_lse=True)
                outs.append(part)
                lses.append(lse)
            if arriving is not None:
                (pair,) = arriving()
        out, total = ops.merge_attention(outs, lses)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.split = split
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        group = groups.context_group()
        wide = torch.promote_types(q.dtype, torch.float32)
        grad = grad.contiguous()
        grad_q = torch.zeros_like(q, dtype=wide)
        pair = torch.stack([k, v])
        grads = torch.zeros_like(pair, dtype=wide)
        for hop in range(group.size()):
            real = ctx.split.real((group.rank() - hop) % group.size(), k.device)
            part_k, part_v = _without_padding(pair[0], pair[1], real)
            if part_k.shape[1]:
                part_q, *parts = ops.attention_backward(grad, q, part_k, part_v, out, lse)
                grad_q += part_q
                for total, part in zip(grads, parts, strict=True):
                    if real is None:
                        total += part
                    else:
                        total.index_add_(1, real, part.to(wide))
            # After as many hops as there are ranks the sums are back where their keys are.
            pair, grads = _pass_on([pair, grads], group)()
        return grad_q.to(q.dtype), grads[0].to(k.dtype), grads[1].to(v.dtype), None


def _pass_on(tensors: list[Tensor], group: dist.ProcessGroup) -> Any:
    """Send to the next rank of the ring and receive from the previous one; the result waits for the latter
    and returns it."""
    ranks = dist.get_process_group_ranks(group)
    following = ranks[(group.rank() + 1) % group.size()]
    previous = ranks[(group.rank() - 1) % group.size()]
    tensors = [t.contiguous() for t in tensors]
    arriving = [torch.empty_like(t) for t in tensors]
    sends = [dist.P2POp(dist.isend, t, following, group, tag=i) for i, t in enumerate(tensors)]
    receives = [dist.P2POp(dist.irecv, t, previous, group, tag=i) for i, t in enumerate(arriving)]
    # Both directions at once: with two ranks, the one that receives first would wait for ever otherwise.
    requests = dist.batch_isend_irecv(sends + receives)

    def wait() -> list[Tensor]:
        for request in requests:
            request.wait()
        assert tensors  # alive until they are sent
        return arriving

    return wait
