"""Attention with log-sum-exp as a fused operator, for every backend with kernels of its own.

A backend's module offers two functions. q [B, Sq, H, D], k and v [B, Sk, H, D] and their gradients are in one
dtype (fp32, bf16 or fp16) with a dense last axis (other strides are free); the log-sum-exp of the scaled
scores [B, H, Sq] is fp32 and contiguous:

    attention(q, k, v, scale) -> out, lse
    attention_backward(grad, grad_lse or None, q, k, v, out, lse, scale, wanted) -> dq, dk, dv
                                                                               (see declaration.py)

They are not called where there is nothing to attend from or to: torch's own kernels for the CPU divide by the
number of their tiles.

With out and lse saved, backward recomputes scores and nothing else; an activation-checkpoint policy that
keeps this operator's results recomputes no attention at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..declaration import Kind, Kinds, Measure, narrow
from ..elements import new_fp32, nothing
from ..library import define, define_differentiable, is_wanted, wanted, where_wanted
from ..registry import kernel_for_heads
from ..strides import new_like


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _is_empty(q: Tensor, k: Tensor) -> bool:
    return not q.numel() or not k.numel()


def lse_like(q: Tensor) -> Tensor:
    return new_fp32(q, q.shape[0], q.shape[2], q.shape[1])


def results_like(wanted: int, *tensors: Tensor) -> list[Tensor]:
    """Memory for the gradients of these that are wanted, and nothing for the others."""
    return [new_like(x) if is_wanted(wanted, i) else nothing(x) for i, x in enumerate(tensors)]


_attend = kernel_for_heads("attn", "attention_lse", "attention", q=0)
_differentiate = kernel_for_heads("attn", "attention_lse", "attention_backward", q=2)


def _attention(q: Tensor, k: Tensor, *rest: Any) -> Any:
    if _is_empty(q, k):
        return new_like(q).zero_(), lse_like(q).fill_(-math.inf)
    return _attend(q, k, *rest)


def _attention_backward(grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, *rest: Any) -> Any:
    if _is_empty(q, k):
        return tuple(x.zero_() for x in results_like(rest[-2], q, k, k))
    return _differentiate(grad, grad_lse, q, k, *rest)


KINDS = Kinds(
    {"queries": narrow("B Sq H Dh"), "keys": narrow("B Sk H Dh"), "lse": Kind("B H Sq")},
    split="B H Sq",
)
_NUMBERS = {"scale": lambda sizes: sizes["Dh"] ** -0.5}

attention_backward = define(
    "attention_backward(queries grad, lse? grad_lse, queries q, keys k, keys v, queries out, lse lse,"
    " float scale, int wanted) -> (q, k, v)",
    KINDS,
    _attention_backward,
    Measure("attention", "bwd", products=5, numbers=_NUMBERS | {"wanted": 0b111}),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    ctx.wanted = wanted(ctx, 0, 1, 2)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output)


def _gradient(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    if grad is None and grad_lse is None:
        return (None,) * 5
    q, k, v, out, lse = ctx.saved_tensors
    grad = torch.zeros_like(out) if grad is None else _dense(grad)
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
    grads = attention_backward(grad, grad_lse, q, k, v, out, lse, ctx.scale, ctx.wanted, ctx.backend)
    return *where_wanted(ctx.wanted, grads), None, None


_forward = define_differentiable(
    "attention(queries q, keys k, keys v, float scale) -> (q, lse(q))",
    KINDS,
    _attention,
    _save,
    _gradient,
    Measure("attention", "fwd", products=2, numbers=_NUMBERS),
)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """Output [B, Sq, H, D] and log-sum-exp [B, H, Sq]."""
    both: tuple[Tensor, Tensor] = _forward(_dense(q), _dense(k), _dense(v), scale, backend)
    return both


def gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the output and log-sum-exp, which may be of more keys than these."""
    q, k, v, grad, out = map(_dense, (q, k, v, grad, out))
    three: tuple[Tensor, Tensor, Tensor] = attention_backward(
        grad, None, q, k, v, out, lse.contiguous(), scale, 0b111, backend
    )
    return three
