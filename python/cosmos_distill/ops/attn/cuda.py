"""Attention on CUDA devices: csrc/attention.cu and csrc/attention_backward.cu, for bf16 and fp16 and head
sizes up to 128. See fused.py for what the functions take and return.

The kernels copy 16 bytes at a time. What does not start or stride by that much, such as heads of a size that
is no multiple of 8, is copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cuda_launch import dtype_of, functions, launch
from ..elements import address, new_fp32, nothing
from ..library import is_wanted
from .fused import lse_like

_PIECE = 8
"""Elements of 16 bits in 16 bytes."""


def _blocks(launch: Any) -> int:
    return int(launch.grid[0])


PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    # Every block of queries walks over all keys and values of its head, every block of keys over all queries.
    # A launch's blocks along the first axis are those of one sample, where all have one.
    **{(one, x): _blocks for one in ("attention_kernel", "attention_dq_kernel") for x in ("k", "v")},
    **{("attention_dkv_kernel", x): _blocks for x in ("q", "grad", "(scratch)")},
    # As a tile, and for its product with the output, of which the second kernel gets the sums in scratch.
    ("attention_dq_kernel", "grad"): lambda _: 2,
    **{("attention_dkv_kernel", x): lambda _: 0 for x in ("out", "lse")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once
(benchmarks/gpu)."""


def _aligned(x: Tensor) -> Tensor:
    """x, or a copy whose heads start at multiples of 16 bytes and end with zeros."""
    if x.shape[-1] % _PIECE:
        return F.pad(x, (0, -x.shape[-1] % _PIECE))
    if x.data_ptr() % 16 or any(stride % _PIECE for stride in x.stride()[:-1]):
        return x.clone(memory_format=torch.contiguous_format)
    return x


def _result(x: Tensor) -> Tensor:
    """A dense tensor of x's shape, its heads as long as those of _aligned(x)."""
    return x.new_empty((*x.shape[:-1], x.shape[-1] + -x.shape[-1] % _PIECE))


def _cut(x: Tensor, dim: int) -> Tensor:
    return x if x.shape[-1] == dim else x[..., :dim].contiguous()


def _matrix(x: Tensor) -> tuple[int, int, int, int]:
    """Address, and the distances between samples, rows and heads."""
    return x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    """batch, heads, queries, keys and head size."""
    batch, queries, heads, dim = q.shape
    return batch, heads, queries, k.shape[1], dim


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    lse = lse_like(q)
    out, dim = _result(q), q.shape[-1]
    q, k, v = (_aligned(x) for x in (q, k, v))
    matrices = (_matrix(x) for x in (q, k, v, out))
    launch(functions.attention_forward, q, dtype_of(q), _sizes(q, k), scale, *matrices, lse.data_ptr())
    return _cut(out, dim), lse


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
    results = [_result(x) if is_wanted(wanted, i) else nothing(x) for i, x in enumerate((q, k, v))]
    dim = q.shape[-1]
    grad, q, k, v, out = (_aligned(x) for x in (grad, q, k, v, out))
    scratch = new_fp32(lse, *lse.shape[:-1], functions.attention_padded(q.shape[1]), 2)
    launch(
        functions.attention_backward,
        q,
        dtype_of(q),
        _sizes(q, k),
        scale,
        _matrix(grad),
        address(grad_lse),
        *(_matrix(x) for x in (q, k, v, out)),
        lse.data_ptr(),
        *(_matrix(x) if x.dim() == 4 else (0, 0, 0, 0) for x in results),
        scratch.data_ptr(),
    )
    dq, dk, dv = (_cut(x, dim) if x.dim() == 4 else x for x in results)
    return dq, dk, dv
