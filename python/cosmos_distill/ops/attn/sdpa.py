"""Attention through torch's scaled_dot_product_attention (flash, memory-efficient or cuDNN inside).

Where the log-sum-exp is wanted, torch's flash attention for the CPU, which has it. See fused.py for what
``attention`` and ``attention_backward`` take and return.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elements import nothing
from ..library import is_wanted
from ..strides import dense
from .form import PLAIN, Form
from .reference import grouped

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


_LANES = 16
"""Of fp32 in the widest vectors. Of fewer keys torch finds the largest score by comparing one after another,
which passes over NaN: where none is a number, it takes the query for one that sees no key and shows zeros."""


def _arguments(q: Tensor, k: Tensor, v: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """q, k and v [B, H, S, D], on a CPU with keys to fill a vector, and the mask that leaves those out."""
    keys, mask = k.shape[1], None
    if k.device.type == "cpu" and _are_few(keys):
        k, v = (F.pad(x, (0, 0, 0, 0, 0, _LANES - keys)) for x in (k, v))
        mask = F.pad(q.new_zeros(keys), (0, _LANES - keys), value=-math.inf).expand(q.shape[1], _LANES)
    return (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)), mask


def _are_few(keys: int | torch.SymInt) -> bool:
    if torch.compiler.is_compiling():
        # A program for any number of keys is not to depend on it. In such a one NaN stays hidden.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(keys > 0) and statically_known_true(keys < _LANES)
    return 0 < keys < _LANES


def attention_only(q: Tensor, k: Tensor, v: Tensor, scale: float, form: Form = PLAIN) -> Tensor:
    """Output [B, Sq, H, D], on every device, without log-sum-exp; differentiated by torch."""
    if form.packed is not None and not torch.compiler.is_compiling():
        return _of_each(q, k, v, scale, form)
    groups: dict[str, Any] = {}
    if k.shape[2] != q.shape[2]:
        if q.device.type == "cuda":
            groups["enable_gqa"] = True
        else:
            k, v = grouped(k, q.shape[2]), grouped(v, q.shape[2])
    tensors, mask = _arguments(q, k, v)
    causal = False
    if not form.plain:
        # torch aligns queries and keys at their beginnings.
        causal = form.mask is None and form.left is None and form.right == 0 and q.shape[1] == k.shape[1]
        causal = causal and form.packed is None and mask is None
        if not causal:
            mask = _mask(q, k, form, tensors[1].shape[2])
    out = F.scaled_dot_product_attention(*tensors, attn_mask=mask, is_causal=causal, scale=scale, **groups)
    return out.transpose(1, 2)


def _mask(q: Tensor, k: Tensor, form: Form, length: int) -> Tensor | None:
    """The form as one mask for so many keys, of which the last may be no real ones."""
    keys = k.shape[1]
    allowed = form.allowed(0, q.shape[1], q.shape[1], keys, q.device)
    mask = form.mask
    if mask is None or mask.dtype == torch.bool:
        if mask is not None:
            allowed = mask if allowed is None else mask & allowed
        if allowed is None or length == keys:
            return allowed
        allowed = allowed.expand(*allowed.shape[:-1], keys)
        return F.pad(allowed, (0, length - keys), value=False)
    mask = mask.to(q.dtype)
    if allowed is not None:
        mask = mask.masked_fill(~allowed, -math.inf)
    if length == keys:
        return mask
    return F.pad(mask.expand(*mask.shape[:-1], keys), (0, length - keys), value=-math.inf)


def _of_each(q: Tensor, k: Tensor, v: Tensor, scale: float, form: Form) -> Tensor:
    """Every packed sequence by itself: no score between two of them exists."""
    assert form.packed is not None
    lengths = [starts.diff().tolist() for starts in form.packed]
    alone = replace(form, packed=None)
    parts = (x.split(n, dim=1) for x, n in zip((q, k, v), (*lengths, lengths[1]), strict=True))
    each = zip(*parts, strict=True)
    return torch.cat([attention_only(a, b, c, scale, alone) for a, b, c in each], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    tensors, mask = _arguments(q, k, v)
    out, lse = _flash(*tensors, attn_mask=mask, scale=scale)
    return dense(out.transpose(1, 2)), dense(lse)


def attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    # torch's kernel has all three gradients in one go; those that are not wanted are dropped.
    # In fp32 whatever the inputs: few CPUs multiply bf16 matrices faster, most several times slower.
    tensors = [x.transpose(1, 2).float() for x in (grad, q, k, v, out)]
    if grad_lse is not None:
        # The gradient of a score is p (grad . v - grad . out + grad_lse). One more channel, 1 in grad, 0 in
        # q, k and v and -grad_lse in out, adds the last term to the second and nothing to anything else.
        one, zero = torch.ones_like(grad_lse), grad_lse.new_zeros(())
        for i, channel in enumerate((one, zero, zero, zero, -grad_lse)):
            column = channel.expand(tensors[i].shape[:3]).unsqueeze(-1)
            tensors[i] = torch.cat([tensors[i], column], dim=-1)
    grads = _flash_backward(*tensors, lse, 0.0, False, scale=scale)
    dim = q.shape[-1]
    dq, dk, dv = (
        dense(g[..., :dim].transpose(1, 2).to(q.dtype)) if is_wanted(wanted, i) else nothing(q)
        for i, g in enumerate(grads)
    )
    return dq, dk, dv
