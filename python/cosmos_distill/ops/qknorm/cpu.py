"""Query/key RMSNorm and rotary embedding on the CPU: csrc/qk_norm_rope.cpp, fp32, forward and backward.

The results do not depend on the number of threads. The tables get no gradient here; where one is wanted
the reference serves.
"""

from __future__ import annotations

from typing import Any

import torch  # before _C: the compiled module then shares torch's OpenMP runtime and thread count
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import _C
from . import reference


def _tokens(x: Tensor) -> tuple[Tensor, int]:
    """[B, S, H, Dh] with dense heads and tokens ``stride`` floats apart; slices of a fused projection
    stay as they are."""
    _, length, heads, dim = x.shape
    strides = x.stride()
    if strides[3] == 1 and strides[2] == dim and strides[0] == length * strides[1]:
        return x, strides[1]
    return x.contiguous(), heads * dim


def _tables(cos: Tensor | None, sin: Tensor | None) -> tuple[int, int, bool]:
    if cos is None or sin is None:
        return 0, 0, False
    return cos.data_ptr(), sin.data_ptr(), cos.dim() == 3


def _forward(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, x as read, [B, S, H] reciprocal root mean squares)."""
    x, stride = _tokens(x)
    out = torch.empty(x.shape)
    rstd = torch.empty(x.shape[:3])
    batch, length, heads, dim = x.shape
    _C.norm_rope_forward(
        batch,
        length,
        heads,
        dim,
        stride,
        x.data_ptr(),
        weight.data_ptr(),
        *_tables(cos, sin),
        eps,
        out.data_ptr(),
        rstd.data_ptr(),
    )
    return out, x, rstd


def _backward(
    grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()
    x, stride = _tokens(x)
    dx, dweight = torch.empty(x.shape), torch.empty(weight.shape)
    batch, length, heads, dim = x.shape
    _C.norm_rope_backward(
        batch,
        length,
        heads,
        dim,
        stride,
        grad.data_ptr(),
        x.data_ptr(),
        rstd.data_ptr(),
        weight.data_ptr(),
        *_tables(cos, sin),
        dx.data_ptr(),
        dweight.data_ptr(),
    )
    return dx, dweight


class _NormRope(torch.autograd.Function):
    """q and k at once: one node costs half of two, and small networks are bound by such costs."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        q_out, q, q_rstd = _forward(q, q_weight, cos, sin, eps)
        k_out, k, k_rstd = _forward(k, k_weight, cos, sin, eps)
        ctx.save_for_backward(q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin)
        ctx.set_materialize_grads(False)
        return q_out, k_out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, q_grad: Tensor | None, k_grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin = ctx.saved_tensors
        dq = dq_weight = dk = dk_weight = None
        if q_grad is not None:
            dq, dq_weight = _backward(q_grad, q, q_rstd, q_weight, cos, sin)
        if k_grad is not None:
            dk, dk_weight = _backward(k_grad, k, k_rstd, k_weight, cos, sin)
        return dq, dk, dq_weight, dk_weight, None, None, None


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`cosmos_distill.ops.qk_norm_rope`."""
    if cos is not None and sin is not None:
        if cos.requires_grad or sin.requires_grad or cos.dtype != torch.float32 or sin.dtype != torch.float32:
            return reference.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)
        cos, sin = cos.contiguous(), sin.contiguous()
    q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, q_weight, k_weight)):
        both: tuple[Tensor, Tensor] = _NormRope.apply(q, k, q_weight, k_weight, cos, sin, eps)
        return both
    return _forward(q, q_weight, cos, sin, eps)[0], _forward(k, k_weight, cos, sin, eps)[0]
