"""Query/key RMSNorm and rotary embedding in Triton. See fused.py for what the functions take and return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import aot
from ..elements import new_fp32, nothing
from ..launch import launch
from ..library import is_wanted
from ..partials import rows_per_program, total
from ..strides import new_like
from .fused import distance, rstd_like
from .triton_kernels import FACTORED, NOTHING, TOKENWISE, norm_rope_backward, norm_rope_forward


def _tables(
    cos: Tensor | None, grid: Sequence[int], interleaved: bool
) -> tuple[tuple[int, ...], dict[str, int | bool]]:
    """Arguments (distance between samples' tables, t, h, w) and constants of a kernel."""
    if cos is None:
        return (0, 1, 1, 1), _kind(NOTHING.value, False)
    shared = cos.dim() == (1 if grid else 2)
    if not grid:
        return (0 if shared else cos.stride(0), 1, 1, 1), _kind(TOKENWISE.value, interleaved)
    t, h, w, *counts = grid
    return (0 if shared else cos.stride(0), t, h, w), _kind(FACTORED.value, interleaved, *counts)


def _kind(tables: int, interleaved: bool, *counts: int) -> dict[str, int | bool]:
    names = zip(("COUNT_T", "COUNT_H", "COUNT_W"), counts or (0, 0, 0), strict=True)
    return {"TABLES": tables, "INTERLEAVED": interleaved, **dict(names)}


def _block(heads: int) -> int:
    """Heads in a tile: a power of two that divides their number, unless that is a very small one."""
    divisor = min(32, heads & -heads)
    return divisor if divisor >= 4 else min(32, triton.next_power_of_2(heads))


def _constants(q: Tensor, k: Tensor) -> dict[str, Any]:
    (q_heads, dim), k_heads = q.shape[2:], k.shape[2]
    half = triton.next_power_of_2((dim + 1) // 2)
    largest = max(_block(q_heads), _block(k_heads))
    return {
        "Q_HEADS": q_heads,
        "K_HEADS": k_heads,
        "DIM": dim,
        "Q_BLOCK": _block(q_heads),
        "K_BLOCK": _block(k_heads),
        "BLOCK_HALF": half,
        "num_warps": min(8, max(1, 2 * half * largest // 512)),
    }


def _tokens(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


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
    q_out, k_out = new_like(q), new_like(k)
    q_rstd, k_rstd = rstd_like(q), rstd_like(k)
    place, tables = _tables(cos, grid, interleaved)
    launch(
        norm_rope_forward,
        (_tokens(q) + _tokens(k),),
        q,
        k,
        q_weight,
        k_weight,
        cos,
        sin,
        q_out,
        k_out,
        q_rstd,
        k_rstd,
        _tokens(q),
        q.shape[1],
        k.shape[1],
        distance(q),
        distance(k),
        *place,
        eps,
        **tables,
        **_constants(q, k),
    )
    return q_out, k_out, q_rstd, k_rstd


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
    dq, dk = (new_like(x) if is_wanted(wanted, i) else nothing(x) for i, x in enumerate((q, k)))
    weights = nothing(q_weight), nothing(k_weight)
    per_program = rows_per_program(max(_tokens(q), _tokens(k)))
    # Of what is not wanted at all there are no programs.
    q_chunks, k_chunks = (
        triton.cdiv(_tokens(x), per_program) if wanted >> i & 0b101 else 0 for i, x in enumerate((q, k))
    )
    summed = wanted & 0b1100
    partials = new_fp32(q, q_chunks + k_chunks, q.shape[-1]) if summed else None
    place, tables = _tables(cos, grid, interleaved)
    launch(
        norm_rope_backward,
        (q_chunks + k_chunks,),
        q_grad,
        k_grad,
        q,
        k,
        q_weight,
        k_weight,
        q_rstd,
        k_rstd,
        cos,
        sin,
        dq if is_wanted(wanted, 0) else None,
        dk if is_wanted(wanted, 1) else None,
        partials,
        q_chunks,
        _tokens(q),
        _tokens(k),
        q.shape[1],
        k.shape[1],
        distance(q),
        distance(k),
        *place,
        WANTED=wanted,
        TOKENS=per_program,
        **tables,
        **_constants(q, k),
    )
    if partials is None:
        return dq, dk, *weights
    parts = enumerate(partials.split([q_chunks, k_chunks]), 2)
    dq_weight, dk_weight = (
        total(part.unsqueeze(0), new_like(q_weight)) if is_wanted(wanted, i) else weights[i - 2]
        for i, part in parts
    )
    return dq, dk, dq_weight, dk_weight


def aot_cases() -> list[aot.AotCase]:
    """Everything launched at the published networks' shapes."""
    found = []
    grid = (16, 44, 80, 22, 21, 21)  # 720p, 16 latent frames, head size 128
    for network, heads, rotated in (
        ("7B", 32, True),
        ("7B cross", 32, False),
        ("2B", 16, True),
        ("14B", 40, True),
    ):
        for dtype, short in aot.DTYPES:
            fused = torch.empty((1, aot.TOKENS, 3 * heads, 128), dtype=dtype, device="meta")
            q = fused[:, :, :heads]  # a slice of a projection
            k = q if rotated else torch.empty((1, 512, heads, 128), dtype=dtype, device="meta")
            dense = torch.empty_like(q, memory_format=torch.contiguous_format)
            weight, rstd = new_fp32(q, 128), rstd_like(q)
            t, h, w, a, b, c = grid
            table = new_fp32(q, t * a + h * b + w * c)
            label = f"{network} 720p {heads}x128 {short}"
            every = new_fp32(q, aot.TOKENS, 128)
            rotations: list[tuple[Any, ...]] = [(table, table, grid), (every, every, ())]
            for tables in rotations if rotated else [(None, None, ())]:
                for interleaved in (False, True) if network == "7B" else (False,):
                    inputs, how = (q, k, weight, weight), (*tables, interleaved)
                    found += aot.cases("qk_norm_rope", label, qk_norm_rope, *inputs, *how, 1e-6)
                    saved = (dense, dense, *inputs, rstd, rstd)
                    found += aot.cases(
                        "qk_norm_rope_backward", label, qk_norm_rope_backward, *saved, *how, 0b1111
                    )
    return found
