"""The gradient's kernels of attention in Triton.

With P = exp(S - lse) and delta = rowsum(grad * out) - grad_lse: dv = P^T grad, dS = P (grad v^T - delta),
dq = scale dS k, dk = scale dS^T q (FlashAttention-2, algorithm 2, and the log-sum-exp's own gradient).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_scores import exponential, from_lse
from .triton_tiles import place, store_tile, tile


@triton.jit
def attention_delta(
    grad,
    grad_lse,
    out,
    delta,
    queries,
    grad_batch,
    grad_token,
    grad_head,
    out_batch,
    out_token,
    out_head,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BATCH_AXIS: tl.constexpr,
):
    first, head, batch = place(BLOCK_M, BATCH_AXIS)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    left = queries - first
    g_at = grad + batch * grad_batch + head * grad_head + first.to(tl.int64) * grad_token
    o_at = out + batch * out_batch + head * out_head + first.to(tl.int64) * out_token
    g = tile(g_at + m[:, None] * grad_token + d[None, :], left, False, D, BLOCK_M, BLOCK_D)
    o = tile(o_at + m[:, None] * out_token + d[None, :], left, False, D, BLOCK_M, BLOCK_D)
    result = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    at = (batch * tl.num_programs(1) + head) * queries + first + m
    if grad_lse is not None:
        result -= tl.load(grad_lse + at, mask=m < left, other=0.0)
    tl.store(delta + at, result, mask=m < left)


@triton.jit
def attention_dkdv(
    dk,
    dv,
    grad,
    q,
    k,
    v,
    lse,
    delta,
    queries,
    keys,
    grad_batch,
    grad_token,
    grad_head,
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
    scale,
    DK: tl.constexpr,
    DV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BATCH_AXIS: tl.constexpr,
):
    NATURAL: tl.constexpr = q.dtype.element_ty == tl.float32
    first, head, batch = place(BLOCK_N, BATCH_AXIS)
    heads = tl.num_programs(1)
    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    k_at = k + batch * k_batch + head * k_head + first.to(tl.int64) * k_token
    v_at = v + batch * v_batch + head * v_head + first.to(tl.int64) * v_token
    key = tile(k_at + n[:, None] * k_token + d[None, :], keys - first, False, D, BLOCK_N, BLOCK_D)
    value = tile(v_at + n[:, None] * v_token + d[None, :], keys - first, False, D, BLOCK_N, BLOCK_D)
    q_at = q + batch * q_batch + head * q_head + m[:, None] * q_token + d[None, :]
    g_at = grad + batch * grad_batch + head * grad_head + m[:, None] * grad_token + d[None, :]
    rows = (batch * heads + head) * queries + m
    key_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, queries, BLOCK_M):
        left = queries - start
        # Rows that do not exist add nothing: their q and grad are zero.
        query = tile(q_at, left, False, D, BLOCK_M, BLOCK_D)
        slope = tile(g_at, left, False, D, BLOCK_M, BLOCK_D)
        peak = from_lse(tl.load(lse + rows, mask=m < left, other=0.0), NATURAL)
        offset = tl.load(delta + rows, mask=m < left, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        shares = exponential(scores * unit - peak[None, :], NATURAL)
        if DV:
            value_sum = tl.dot(shares.to(slope.dtype), slope, value_sum, input_precision=PRECISION)
        if DK:
            change = tl.dot(value, tl.trans(slope), input_precision=PRECISION)
            change = shares * (change - offset[None, :])
            key_sum = tl.dot(change.to(query.dtype), query, key_sum, input_precision=PRECISION)
        q_at += BLOCK_M * q_token
        g_at += BLOCK_M * grad_token
        rows += BLOCK_M
    at = ((batch * keys + first) * heads + head) * D + n[:, None] * heads * D + d[None, :]
    if DK:
        store_tile(dk + at, key_sum * scale, keys - first, D)
    if DV:
        store_tile(dv + at, value_sum, keys - first, D)


@triton.jit
def attention_dq(
    dq,
    grad,
    q,
    k,
    v,
    lse,
    delta,
    queries,
    keys,
    grad_batch,
    grad_token,
    grad_head,
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
    scale,
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
    g_at = grad + batch * grad_batch + head * grad_head + first.to(tl.int64) * grad_token
    query = tile(q_at + m[:, None] * q_token + d[None, :], queries - first, False, D, BLOCK_M, BLOCK_D)
    slope = tile(g_at + m[:, None] * grad_token + d[None, :], queries - first, False, D, BLOCK_M, BLOCK_D)
    rows = (batch * heads + head) * queries + first + m
    peak = from_lse(tl.load(lse + rows, mask=m < queries - first, other=0.0), NATURAL)
    offset = tl.load(delta + rows, mask=m < queries - first, other=0.0)
    k_at = k + batch * k_batch + head * k_head + n[:, None] * k_token + d[None, :]
    v_at = v + batch * v_batch + head * v_head + n[:, None] * v_token + d[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_N):
        left = keys - start
        key = tile(k_at, left, EVEN, D, BLOCK_N, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        shares = exponential(scores * unit - peak[:, None], NATURAL)
        if not EVEN:  # a key of zeros may well have an infinite share
            shares = tl.where((n < left)[None, :], shares, 0.0)
        value = tile(v_at, left, EVEN, D, BLOCK_N, BLOCK_D)
        change = tl.dot(slope, tl.trans(value), input_precision=PRECISION)
        change = shares * (change - offset[:, None])
        total = tl.dot(change.to(key.dtype), key, total, input_precision=PRECISION)
        k_at += BLOCK_N * k_token
        v_at += BLOCK_N * v_token
    at = ((batch * queries + first) * heads + head) * D + m[:, None] * heads * D + d[None, :]
    store_tile(dq + at, total * scale, queries - first, D)
