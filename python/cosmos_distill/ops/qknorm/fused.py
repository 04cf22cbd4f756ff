"""Query/key RMSNorm and rotary embedding as fused operators, for every backend with kernels of its own.

A backend's module offers two functions. q [B, S, H, Dh] and k [B, S', H', Dh] have dense heads and evenly
spaced tokens (slices of a fused projection are not copied); their results and gradients are contiguous, all
in one dtype (fp32, bf16 or fp16). Weights [Dh], their gradients and the reciprocal root mean squares
[B, S, H] are fp32:

    qk_norm_rope(q, k, q_weight, k_weight, cos, sin, grid, interleaved, eps)
        -> q_out, k_out, q_rstd, k_rstd
    qk_norm_rope_backward(q_grad, k_grad, q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin, grid,
                          interleaved, wanted) -> dq, dk, dq_weight, dk_weight   (see declaration.py)

cos and sin are contiguous fp32 or None (no rotation). With an empty ``grid`` they are tables of every
token, [S, Dh] or [B, S, Dh]. With grid = (T, H, W, a, b, c), S = T * H * W and Dh = 2 (a + b + c), they are
factored: [L] or [B, L] with L = T * a + H * b + W * c, the flattened tables [T, a], [H, b] and [W, c] one
after the other; token (t, h, w) turns the i-th pair of channels by the i-th of its a + b + c angles. A pair
are channels i and i + Dh / 2 or, interleaved (False where there are no tables), 2 i and 2 i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..declaration import Given, Kind, Kinds, Measure, narrow, small
from ..elements import new_fp32
from ..library import define, define_differentiable, wanted, where_wanted
from ..registry import kernel_for_heads
from ..strides import evenly_spaced, spacing


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


def arrangement(cos: Tensor, grid: Sequence[int], interleaved: bool) -> int:
    """How compiled kernels number what tables hold: 1 for those of each sample, + 2 for interleaved ones."""
    return (cos.dim() == (2 if grid else 3)) + 2 * interleaved


def _table_axes(table: Tensor, given: Given) -> str:
    if given["grid"]:
        return "L" if table.ndim == 1 else "B L"
    return "S Dh" if table.ndim == 2 else "B S Dh"


def _split(given: Given) -> str:
    """A shard of tokens is no grid. DTensor remembers decisions by shapes alone, and where those do not tell
    [S, Dh] from factored [B, L] only heads are the same for both."""
    table = given["cos"]
    if table is None:
        return "B S H"
    batch, length, _, dim = given["q"].shape
    if tuple(table.shape) == (batch, dim) == (length, dim):
        return "H"
    return "B H" if given["grid"] else "B S H"


# Of q and k, lengths and heads may differ; where they are split, both are.
KINDS = Kinds(
    {
        "heads": narrow("B S H Dh"),
        "weight": Kind("Dh"),
        "rstd": small("B S H"),
        "table": Kind(_table_axes, measured="L"),
    },
    split=_split,
)
_NUMBERS = {"grid": lambda sizes: sizes["grid"], "interleaved": False}

_backward = define(
    "qk_norm_rope_backward(heads q_grad, heads k_grad, heads q, heads k, weight q_weight, weight k_weight,"
    " rstd q_rstd, rstd k_rstd, table? cos, table? sin, SymInt[] grid, bool interleaved, int wanted)"
    " -> (q, k, q_weight, k_weight)",
    KINDS,
    kernel_for_heads("qknorm", "qk_norm_rope", "qk_norm_rope_backward", q=2),
    Measure("qk_norm_rope", "bwd", flops=30, given="cos sin", numbers=_NUMBERS | {"wanted": 0b1111}),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, q_weight, k_weight, cos, sin, ctx.grid, ctx.interleaved, _, ctx.backend = inputs
    ctx.wanted = wanted(ctx, 0, 1, 2, 3)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.save_for_backward(q, k, q_weight, k_weight, output[2], output[3], cos, sin)


def _gradient(ctx: Any, q_grad: Tensor, k_grad: Tensor, *_: Any) -> tuple[Any, ...]:
    how = ctx.grid, ctx.interleaved, ctx.wanted, ctx.backend
    grads = _backward(q_grad.contiguous(), k_grad.contiguous(), *ctx.saved_tensors, *how)
    return *where_wanted(ctx.wanted, grads), *(None,) * 6


_forward = define_differentiable(
    "qk_norm_rope(heads q, heads k, weight q_weight, weight k_weight, table? cos, table? sin, SymInt[] grid,"
    " bool interleaved, float eps) -> (q, k, rstd(q), rstd(k))",
    KINDS,
    kernel_for_heads("qknorm", "qk_norm_rope", "qk_norm_rope", q=0),
    _save,
    _gradient,
    Measure("qk_norm_rope", "fwd", flops=14, given="cos sin", numbers=_NUMBERS | {"eps": 1e-6}),
)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: tuple[int, ...],
    interleaved: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``cos`` and ``sin`` as the kernels take them (above), without gradient."""
    if cos is not None and sin is not None:
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
    weights = q_weight.float().contiguous(), k_weight.float().contiguous()
    q_out, k_out, _, _ = _forward(_tokens(q), _tokens(k), *weights, cos, sin, grid, interleaved, eps, backend)
    return q_out, k_out
