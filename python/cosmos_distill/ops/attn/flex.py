"""Attention through torch's flex_attention: windows, soft caps, packed sequences, and no score in memory.

Compiled for GPUs by torch's compiler. Blocks of keys that no query of a block attends to are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .form import Form

_compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
_KEPT = 64
"""Block masks that are kept, of the sizes they are for."""


def _band(form: Form, queries: int, keys: int) -> Callable[..., Tensor]:
    offset, left, right = keys - queries, form.left, form.right

    def attends(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ahead = k - q - offset
        inside = ahead == ahead
        if left is not None:
            inside = inside & (ahead >= -left)
        if right is not None:
            inside = inside & (ahead <= right)
        return inside

    return attends


def _packed(form: Form, queries: int, keys: int, device: torch.device) -> Callable[..., Tensor]:
    assert form.packed is not None
    starts_q, starts_k = (starts.to(device, torch.int64) for starts in form.packed)
    of_q = torch.searchsorted(starts_q, torch.arange(queries, device=device), right=True)
    of_k = torch.searchsorted(starts_k, torch.arange(keys, device=device), right=True)
    q_end = torch.cat([starts_q, starts_q.new_tensor([queries])])[of_q]
    k_end = torch.cat([starts_k, starts_k.new_tensor([keys])])[of_k]
    left, right = form.left, form.right

    def attends(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ahead = (k - k_end[k]) - (q - q_end[q])
        inside = of_q[q] == of_k[k]
        if left is not None:
            inside = inside & (ahead >= -left)
        if right is not None:
            inside = inside & (ahead <= right)
        return inside

    return attends


_kept: dict[tuple[Any, ...], BlockMask] = {}


def _blocks(form: Form, queries: int, keys: int, device: torch.device) -> BlockMask | None:
    sizes: dict[str, Any] = {"B": None, "H": None, "Q_LEN": queries, "KV_LEN": keys, "device": device}
    if form.packed is not None:
        return create_block_mask(_packed(form, queries, keys, device), **sizes)
    if not form.banded:
        return None
    key = form.left, form.right, queries, keys, device
    if key not in _kept:
        while len(_kept) >= _KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[key] = create_block_mask(_band(form, queries, keys), **sizes)
    return _kept[key]


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def bend(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return bend


def attention_with_form(q: Tensor, k: Tensor, v: Tensor, scale: float, form: Form) -> tuple[Tensor, Tensor]:
    """Output [B, Sq, H, D] and log-sum-exp [B, H, Sq], differentiated by torch."""
    run: Any = _compiled if q.is_cuda else flex_attention
    out, lse = run(
        *(x.transpose(1, 2) for x in (q, k, v)),
        score_mod=None if form.softcap is None else _capped(form.softcap),
        block_mask=_blocks(form, q.shape[1], k.shape[1], q.device),
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
        return_lse=True,
    )
    return out.transpose(1, 2), lse
