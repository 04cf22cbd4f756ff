"""Query/key RMSNorm and rotary embedding as fused operators, for every backend with kernels of its own.

A backend's module offers two functions. q [B, S, H, Dh] and k [B, S', H', Dh] have dense heads and evenly
spaced tokens (slices of a fused projection are not copied); their results and gradients are contiguous, all
in one dtype (fp32, bf16 or fp16). Weights [Dh], their gradients and the reciprocal root mean squares
[B, S, H] are fp32:

    qk_norm_rope(q, k, q_weight, k_weight, cos, sin, grid, eps) -> q_out, k_out, q_rstd, k_rstd
    qk_norm_rope_backward(q_grad, k_grad, q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin, grid)
        -> dq, dk, dq_weight, dk_weight

cos and sin are contiguous fp32 or None (no rotation). With an empty ``grid`` they are tables of every
token, [S, Dh] or [B, S, Dh]. With grid = (T, H, W, a, b, c), S = T * H * W and Dh = 2 (a + b + c), they are
factored: [L] or [B, L] with L = T * a + H * b + W * c, the flattened tables [T, a], [H, b] and [W, c] one
after the other; token (t, h, w) turns channel i and channel i + Dh / 2 by the i-th of its a + b + c angles.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..elements import new_fp32
from ..library import define, define_differentiable
from ..registry import kernel_for_heads
from ..strides import evenly_spaced, new_like, spacing


def _tokens(x: Tensor) -> Tensor:
    strides = x.stride()
    if strides[3] == 1 and strides[2] == x.shape[3] and evenly_spaced(x):
        return x
    return x.contiguous()


def distance(x: Tensor) -> int:
    """Elements between such tokens."""
    return spacing(x, 2)


def rstd_like(x: Tensor) -> Tensor:
    return new_fp32(x, *x.shape[:3])


def _backward_shapes(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return new_like(q), new_like(k), new_like(q_weight), new_like(k_weight)


_backward = define(
    "qk_norm_rope_backward(Tensor q_grad, Tensor k_grad, Tensor q, Tensor k, Tensor q_weight,"
    " Tensor k_weight, Tensor q_rstd, Tensor k_rstd, Tensor? cos, Tensor? sin, SymInt[] grid, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    kernel_for_heads("qk_norm_rope", "qk_norm_rope_backward", q=2),
    _backward_shapes,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, q_weight, k_weight, cos, sin, ctx.grid, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.save_for_backward(q, k, q_weight, k_weight, output[2], output[3], cos, sin)


def _gradient(ctx: Any, q_grad: Tensor, k_grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grads = _backward(q_grad.contiguous(), k_grad.contiguous(), *ctx.saved_tensors, ctx.grid, ctx.backend)
    return *grads, None, None, None, None, None


_forward = define_differentiable(
    "qk_norm_rope(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor? cos, Tensor? sin,"
    " SymInt[] grid, float eps, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel_for_heads("qk_norm_rope", "qk_norm_rope", q=0),
    lambda q, k, *_: (new_like(q), new_like(k), rstd_like(q), rstd_like(k)),
    _save,
    _gradient,
)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: tuple[int, ...],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``cos`` and ``sin`` as the kernels take them (above), without gradient."""
    if cos is not None and sin is not None:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
    weights = q_weight.float().contiguous(), k_weight.float().contiguous()
    q_out, k_out, _, _ = _forward(_tokens(q), _tokens(k), *weights, cos, sin, grid, eps, backend)
    return q_out, k_out
