"""Query/key RMSNorm and rotary embedding on CUDA devices: csrc/qk_norm_rope.cu. See fused.py for what the
functions take and return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..cuda_launch import dtype_of, functions, launch
from ..elements import address, new_fp32, nothing
from ..library import is_wanted
from ..strides import new_like
from .fused import arrangement, distance, rstd_like

PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    # Two sweeps: for the sums over a head, and for its gradient or result.
    **{("norm_rope_forward_kernel", x): lambda _: 2 for x in ("q", "k")},
    **{("norm_rope_backward_kernel", x): lambda _: 2 for x in ("q_grad", "k_grad", "q", "k")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once
(benchmarks/gpu)."""


def _call(
    q: Tensor, cos: Tensor | None, sin: Tensor | None, grid: Sequence[int], interleaved: bool
) -> tuple[int, int, int, int, int, int, list[int]]:
    """What both sides share: dtype, length, head size and tables."""
    _, length, _, dim = q.shape
    how = 0 if cos is None else arrangement(cos, grid, interleaved)
    return dtype_of(q), length, dim, address(cos), address(sin), how, list(grid)


def _tokens(x: Tensor) -> tuple[int, int, int]:
    """Tokens, heads, and elements between tokens."""
    batch, length, heads, _ = x.shape
    return batch * length, heads, distance(x)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: Sequence[int],
    interleaved: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outs, rstds = [new_like(x) for x in (q, k)], [rstd_like(q), rstd_like(k)]
    sides = [
        (*_tokens(x), x.data_ptr(), weight.data_ptr(), out.data_ptr(), rstd.data_ptr())
        for x, weight, out, rstd in zip((q, k), (q_weight, k_weight), outs, rstds, strict=True)
    ]
    launch(functions.norm_rope_forward, q, *_call(q, cos, sin, grid, interleaved), eps, *sides)
    return outs[0], outs[1], rstds[0], rstds[1]


def qk_norm_rope_backward(
    q_grad: Tensor,
    k_grad: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    q_rstd: Tensor,
    k_rstd: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: Sequence[int],
    interleaved: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chunks = functions.norm_rope_chunks(max(_tokens(q)[0], _tokens(k)[0]))
    kept, sides = [], []
    each = ((q_grad, q, q_weight, q_rstd), (k_grad, k, k_weight, k_rstd))
    for i, (grad, x, weight, rstd) in enumerate(each):
        dx = new_like(x) if is_wanted(wanted, i) else nothing(x)
        summed = is_wanted(wanted, 2 + i)
        dweight = new_like(weight) if summed else nothing(weight)
        partial = new_fp32(weight, chunks, *weight.shape) if summed else nothing(weight)
        kept.append((dx, dweight, partial))
        tensors = (grad, x, weight, rstd, dx, dweight, partial)
        sides.append((*_tokens(x), *(tensor.data_ptr() for tensor in tensors)))
    launch(functions.norm_rope_backward, q, *_call(q, cos, sin, grid, interleaved), *sides)
    (dq, dq_weight, _), (dk, dk_weight, _) = kept
    return dq, dk, dq_weight, dk_weight
