"""Scaled dot-product attention between sequences of any two lengths, with masks and without."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor

from .. import registry
from ..checks import beside, flag, floating, like, number, typed
from ..library import kernels
from . import fused, reference, sdpa
from .form import PLAIN, Form, Lengths, Window, checked
from .merge import merge_attention

__all__ = ["attention", "attention_backward", "merge_attention"]

# Tensor cores multiply narrow numbers only. A head's rows stay in registers.
_CUDA = replace(registry.CUDA, dtypes=(torch.bfloat16, torch.float16), largest_head=128)
_TRITON = replace(registry.TRITON, largest_head=128)
_TORCH = ("mask", "causal mask", "window", "packed sequences")
_SDPA = replace(registry.SDPA, has=_TORCH)
_FLEX = replace(registry.FLEX, has=("causal mask", "window", "soft cap", "packed sequences"))
_TILED = replace(registry.TILED, has=(*_TORCH, "soft cap", "gradient of a mask"))
registry.serve(
    "attn",
    # torch's own flash attention comes first: none of these kernels has been timed against it on a GPU.
    attention=(_SDPA, _TRITON, _CUDA, _FLEX, _TILED, registry.REFERENCE),
    attention_lse=(
        _TRITON,
        _CUDA,
        replace(registry.SDPA, devices=("cpu",), dtypes=registry.NARROW),
        _FLEX,
        _TILED,
        registry.REFERENCE,
    ),
)


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: Window = None,
    softcap: float | None = None,
    cu_seqlens: Lengths = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: Window = None,
    softcap: float | None = None,
    cu_seqlens: Lengths = None,
    scale: float | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: Window = None,
    softcap: float | None = None,
    cu_seqlens: Lengths = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(scale * q k^T) v`` for every head.

    Under torch.autocast q, k and v are cast as torch's scaled_dot_product_attention casts them: to autocast's
    dtype, but for fp64.

    Args:
        q: [B, Sq, H, D].
        k: [B, Sk, H', D]; H is a multiple of H', and so many heads of q in a row share one of k and v
            (grouped queries, arXiv 2305.13245).
        v: [B, Sk, H', D].
        mask: bool, True where a query attends to a key, or floating-point numbers that are added to the
            scaled scores; of 2 to 4 axes that broadcast to [B, H, Sq, Sk].
        causal: queries attend to no key behind them, the last query to all: both are aligned at their ends,
            as in flash-attn (torch aligns them at their beginnings; the same where there are as many).
        window: how many keys before and behind its own place a query attends to, (before, behind), None for
            no limit; a number is both.
        softcap: c > 0 makes a scaled score s into c tanh(s / c), before masks (Gemma 2, arXiv 2408.00118).
        cu_seqlens: packed sequences: where each starts and the last ends, int32 or int64 [sequences + 1] from
            0 to S, one for q and k or (of q, of k); B is 1. Attention, causal and window are those of each
            sequence by itself. Not together with a mask. Looked at on the CPU only.
        scale: factor on the scores; None is 1 / sqrt(D).
        return_lse: also return the log-sum-exp of the scores as the softmax has them, with which partial
            results over disjoint keys can be merged (:func:`merge_attention`).
        backend: ``sdpa`` (with log-sum-exp: on the CPU only), ``reference``, or what else
            :mod:`cosmos_distill.ops.registry` lists. With log-sum-exp, heads too large for every kernel
            (above 128 channels on a GPU) are served by ``tiled``, which holds the scores of some queries at a
            time; so is, where neither torch's kernels nor flex_attention (``flex``, on GPUs) have it, a soft
            cap, a mask with log-sum-exp, and the gradient of a mask.

    Returns:
        [B, Sq, H, D] in q's dtype; with return_lse, (that, [B, H, Sq] in fp32, fp64 for fp64). A query that
        attends to nothing gets zeros, and -inf.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve this call; the message says what it lacks.
    """
    _check(q, k, v, grouped=True)
    form = PLAIN
    if mask is not None or causal or window is not None or softcap is not None or cu_seqlens is not None:
        form = checked(q, k, mask, causal, window, softcap, cu_seqlens)
    elif causal is not False:
        flag("causal", causal)
    device = q.device.type
    if _autocasts(device):
        q, k, v = (_autocast(x, torch.get_autocast_dtype(device)) for x in (q, k, v))
        with torch.autocast(device, enabled=False):
            return _attention(q, k, v, scale, form, return_lse, backend)
    return _attention(q, k, v, scale, form, return_lse, backend)


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, grouped: bool = False) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        floating(name, x)
        if x.dim() != 4 or x.shape[-1] == 0:
            raise ValueError(f"{name} must be [B, S, H, D] with D > 0, not {tuple(x.shape)}")
        beside(name, x, "q", q)
    shared = grouped and k.shape[2] and q.shape[2] % k.shape[2] == 0
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or not (shared or k.shape[2] == q.shape[2]):
        raise ValueError(
            f"k must be [{q.shape[0]}, Sk, {q.shape[2]}, {q.shape[3]}] like q, not {list(k.shape)}"
        )
    if v.shape != k.shape:
        raise ValueError(f"v must have k's shape {list(k.shape)}, not {list(v.shape)}")


def _scale(scale: float | None, q: Tensor) -> float:
    if scale is None:
        return 1 / math.sqrt(q.shape[-1])
    number("scale", scale)
    return scale


def _attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, form: Form, return_lse: bool, backend: str | None
) -> Tensor | tuple[Tensor, Tensor]:
    typed("k", k, q.dtype)
    typed("v", v, q.dtype)
    flag("return_lse", return_lse)
    scale = _scale(scale, q)
    operator = "attention_lse" if return_lse else "attention"
    wanted = () if form.plain else form.wanted
    differentiated = (q, k, v, form.mask)
    chosen = registry.pick(
        operator, backend, q, k, v, head=q.shape[-1], wanted=wanted, learned=differentiated
    )
    if chosen == "sdpa" and not return_lse:
        return sdpa.attention_only(q, k, v, scale, form)
    if chosen == "reference":
        out, lse = reference.attention_lse(q, k, v, scale, form)
    elif chosen == "flex" or wanted:
        out, lse = kernels("attn", chosen).attention_with_form(q, k, v, scale, form)
    else:
        k, v = (reference.grouped(x, q.shape[2]) for x in (k, v))
        out, lse = fused.attention(q, k, v, scale, chosen)
    return (out, lse) if return_lse else out


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention` with respect to q, k and v: what autograd calls, for those who pass keys
    around. Differentiable itself under ``reference`` only; torch.autocast changes nothing.

    Where k and v are some of the keys and ``out`` and ``lse`` belong to all (:func:`merge_attention`), the
    results are the gradients of these keys and values, and their share of q's, to be summed over the parts.

    Args:
        grad: gradient of out, [B, Sq, H, D].
        q: [B, Sq, H, D].
        k: [B, Sk, H, D].
        v: [B, Sk, H, D].
        out: output over all keys, [B, Sq, H, D].
        lse: log-sum-exp of the scaled scores over all keys, [B, H, Sq] in fp32, fp64 for fp64; the others are
            in one dtype.
        scale: factor on the scores; None is 1 / sqrt(D).
        backend: as in :func:`attention` with ``return_lse``.

    Returns:
        (dq, dk, dv), shaped and typed as q, k and v.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve this call.
    """
    _check(q, k, v)
    for name, x in (("grad", grad), ("out", out)):
        like(name, x, q.shape, "q", q)
    like("lse", lse, (q.shape[0], q.shape[2], q.shape[1]), "q", q)
    for name, x in (("k", k), ("v", v), ("grad", grad), ("out", out)):
        typed(name, x, q.dtype)
    typed("lse", lse, torch.promote_types(q.dtype, torch.float32))
    scale = _scale(scale, q)
    differentiated = (grad, q, k, v, out, lse)
    chosen = registry.pick("attention_lse", backend, q, k, v, head=q.shape[-1], learned=differentiated)
    if _autocasts(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return _gradient(grad, q, k, v, out, lse, scale, chosen)
    return _gradient(grad, q, k, v, out, lse, scale, chosen)


def _gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, chosen: str
) -> tuple[Tensor, Tensor, Tensor]:
    if chosen == "reference":
        return reference.attention_backward(grad, None, q, k, v, out, lse, scale)
    return fused.gradient(grad, q, k, v, out, lse, scale, chosen)
