"""Attention in Triton (FlashAttention-2, arXiv 2307.08691). See fused.py for what the functions take and
return.

Scores exist tile by tile. Backward recomputes them once for dk and dv and once for dq: seven matrix products
where five would do if dq were added up with atomics, but the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aot
from ..launch import architecture, launch
from ..library import is_wanted
from ..strides import new_like
from .fused import lse_like, results_like
from .triton_backward import attention_delta, attention_dkdv, attention_dq
from .triton_scores import exponential, scaled, to_lse
from .triton_tiles import batch_axis, grid, place, store_tile, tile


def _blocks(launch: Any) -> int:
    return int(launch.grid[0])


PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    # Every block of queries walks over all keys and values of its head, every block of keys over all queries.
    **{(kernel, x): _blocks for kernel in ("attention_forward", "attention_dq") for x in ("k", "v")},
    **{("attention_dkdv", x): _blocks for x in ("q", "grad", "lse", "delta")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole, where that is not once
(benchmarks/gpu)."""


@triton.jit
def attention_forward(
    q,
    k,
    v,
    out,
    lse,
    queries,
    keys,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    unit,
    EVEN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BATCH_AXIS: tl.constexpr,
):
    NATURAL: tl.constexpr = q.dtype.element_ty == tl.float32
    first, head, batch = place(BLOCK_M, BATCH_AXIS)
    heads = tl.num_programs(1)
    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    q_at = q + batch * q_batch + head * q_head + first.to(tl.int64) * q_token
    query = tile(q_at + m[:, None] * q_token + d[None, :], queries - first, False, D, BLOCK_M, BLOCK_D)
    k_at = k + batch * k_batch + head * k_head + n[:, None] * k_token + d[None, :]
    v_at = v + batch * v_batch + head * v_head + n[:, None] * v_token + d[None, :]
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_N):
        left = keys - start
        key = tile(k_at, left, EVEN, D, BLOCK_N, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if not EVEN:
            scores = tl.where((n < left)[None, :], scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * unit)
        shares = exponential(scores * unit - higher[:, None], NATURAL)
        fade = exponential(peak - higher, NATURAL)
        weight = weight * fade + tl.sum(shares, 1)
        value = tile(v_at, left, EVEN, D, BLOCK_N, BLOCK_D)
        total = tl.dot(shares.to(value.dtype), value, total * fade[:, None], input_precision=PRECISION)
        peak = higher
        k_at += BLOCK_N * k_token
        v_at += BLOCK_N * v_token
    weight = tl.where(weight == 0.0, 1.0, weight)  # no keys at all: zeros, with a log-sum-exp of -inf
    row = (batch * queries + first) * heads + head
    store_tile(
        out + row * D + m[:, None] * heads * D + d[None, :], total / weight[:, None], queries - first, D
    )
    at = (batch * heads + head) * queries + first
    tl.store(lse + at + m, to_lse(peak, weight, NATURAL), mask=m < queries - first)


@dataclass(frozen=True)
class Config:
    """How one kernel is cut up: rows of queries and of keys in a tile, and how programs run."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Configs:
    forward: Config
    dkdv: Config
    dq: Config


# Small, so that tests with few tokens have several tiles, and unlike each other.
_INTERPRETER = Configs(Config(32, 16, 4, 1), Config(16, 32, 4, 1), Config(32, 16, 4, 1))
# By the head size rounded up, for 16-bit numbers. What data-center GPUs from Hopper on (90 to 119) multiply
# with wgmma or tcgen05; and what fits into the 99 KiB of shared memory of the others' smallest (86, 89, 120).
# None spills registers; on Blackwell a tile of 128 keys would, when their number is odd.
_HOPPER = {
    64: Configs(Config(128, 128, 8, 2), Config(64, 128, 8, 2), Config(128, 64, 8, 2)),
    128: Configs(Config(128, 128, 8, 2), Config(64, 128, 8, 2), Config(128, 64, 8, 2)),
}
_BLACKWELL = {64: _HOPPER[64], 128: replace(_HOPPER[128], forward=Config(128, 64, 8, 3))}
_AMPERE = {
    64: Configs(Config(128, 64, 4, 3), Config(64, 128, 8, 2), Config(128, 64, 8, 2)),
    128: Configs(Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 64, 8, 2)),
}
# Exact fp32 products, which no tensor core makes, on every GPU.
_FP32 = Configs(Config(64, 32, 8, 2), Config(32, 32, 8, 2), Config(32, 32, 8, 2))


def _configs(x: Tensor) -> Configs:
    arch = architecture(x)
    if arch == 0:
        return _INTERPRETER
    if x.dtype == torch.float32:
        return _FP32
    generation = _BLACKWELL if 100 <= arch < 120 else _HOPPER if 90 <= arch < 100 else _AMPERE
    return generation[64 if x.shape[-1] <= 64 else 128]


def _constants(q: Tensor, config: Config) -> dict[str, Any]:
    size = q.shape[-1]
    return {
        "D": size,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_M": config.queries,
        "BLOCK_N": config.keys,
        "PRECISION": "ieee",
        "BATCH_AXIS": batch_axis(q),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    config = _configs(q).forward
    q, _, unit = scaled(q, scale)
    if unit < 0:  # the largest product is the largest score only under a positive one
        q, unit = -q, -unit
    out, lse = new_like(q), lse_like(q)
    launch(
        attention_forward,
        grid(q, config.queries),
        q,
        k,
        v,
        out,
        lse,
        q.shape[1],
        k.shape[1],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        max(unit, 1e-30),
        EVEN=k.shape[1] % config.keys == 0,
        **_constants(q, config),
    )
    return out, lse


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
    queries, keys, size = q.shape[1], k.shape[1], q.shape[-1]
    delta = torch.empty_like(lse)
    block = max(16, triton.next_power_of_2(size))
    launch(
        attention_delta,
        grid(q, 32),
        grad,
        grad_lse,
        out,
        delta,
        queries,
        *grad.stride()[:3],
        *out.stride()[:3],
        D=size,
        BLOCK_D=block,
        BLOCK_M=32,
        BATCH_AXIS=batch_axis(q),
        num_warps=4,
    )
    dq, dk, dv = results_like(wanted, q, k, v)
    q, left, unit = scaled(q, scale)
    shared = (grad, q, k, v, lse, delta, queries, keys)
    strides = [stride for x in (grad, q, k, v) for stride in x.stride()[:3]]
    configs = _configs(q)
    if wanted & 0b110:
        launch(
            attention_dkdv,
            grid(k, configs.dkdv.keys),
            dk if is_wanted(wanted, 1) else None,
            dv if is_wanted(wanted, 2) else None,
            *shared,
            *strides,
            unit,
            left,
            DK=is_wanted(wanted, 1),
            DV=is_wanted(wanted, 2),
            **_constants(q, configs.dkdv),
        )
    if is_wanted(wanted, 0):
        launch(
            attention_dq,
            grid(q, configs.dq.queries),
            dq,
            *shared,
            *strides,
            unit,
            scale,
            EVEN=keys % configs.dq.keys == 0,
            **_constants(q, configs.dq),
        )
    return dq, dk, dv


_TENSOR_CORES = {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",)}


def aot_cases() -> list[aot.AotCase]:
    """Everything launched at the published networks' shapes."""
    found = []
    clip = (1, aot.TOKENS)
    for network, (batch, queries), heads, size, keys in (
        ("7B 720p", clip, 32, 128, aot.TOKENS),
        ("7B cross 720p", clip, 32, 128, 512),
        ("7B, one token less 720p", clip, 32, 128, aot.TOKENS - 1),
        ("2B 720p", clip, 16, 128, aot.TOKENS),
        ("14B 720p", clip, 40, 128, aot.TOKENS),
        ("head size 64 720p", clip, 16, 64, aot.TOKENS),
        ("70,000 samples", (70_000, 64), 16, 128, 64),
    ):
        for dtype, short in aot.DTYPES:
            q = torch.empty((batch, queries, heads, size), dtype=dtype, device="meta")
            k = torch.empty((batch, keys, heads, size), dtype=dtype, device="meta")
            lse = lse_like(q)
            label = f"{network} {heads}x{size} {short}"
            launched = aot.cases("attention", label, attention, q, k, k, 0.1)
            for grad_lse, unused in ((lse, ""), (None, ", lse unused")):
                saved = (q, grad_lse, q, k, k, q, lse, 0.1, 0b111)
                launched += aot.cases("attention_backward", label + unused, attention_backward, *saved)
            for case in launched:
                products = case.kernel is not attention_delta
                alike = (short == "fp16" and not products) or (short != "bf16" and batch > 1)
                wanted = _TENSOR_CORES if products and short != "fp32" else {}
                found.append(replace(case, must_contain=wanted, alike=alike))
    return found
