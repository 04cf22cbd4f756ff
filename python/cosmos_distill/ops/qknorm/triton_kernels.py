"""The kernels of query/key RMSNorm and rotary embedding in Triton.

Queries and keys share a launch: the first programs take tokens of q, the others tokens of k. A program holds
the first and the second channels of the pairs that turn with each other as two tiles, low and high, so that
both of a pair are in one thread, and reads the angles of a token once for all its heads. The two are half a
head apart or, interleaved, neighbours: these are read and written as one tile, whole cache lines at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What cos and sin hold: no rotation, the angles of every token, or those of every place on each axis.
NOTHING = tl.constexpr(0)
TOKENWISE = tl.constexpr(1)
FACTORED = tl.constexpr(2)


@triton.jit
def _load_pairs(row, channel, here, DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The first and the second channels of pairs in fp32, zeros beyond.

    ``row``: addresses [heads, 1] or [1, 1]; ``channel`` [BLOCK_HALF] counts pairs; ``here`` [heads, 1]: rows
    that exist.
    """
    HALF: tl.constexpr = (DIM + 1) // 2
    if INTERLEAVED:
        at = 2 * channel[None, :, None] + tl.arange(0, 2)[None, None, :]
        inside = here[:, :, None] & (channel < HALF)[None, :, None]
        low, high = tl.split(tl.load(row[:, :, None] + at, mask=inside, other=0.0).to(tl.float32))
    else:
        low = tl.load(row + channel[None, :], mask=here & (channel < HALF)[None, :], other=0.0)
        high = tl.load(row + HALF + channel[None, :], mask=here & (HALF + channel < DIM)[None, :], other=0.0)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _store_pairs(row, low, high, channel, here, DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """As :func:`_load_pairs`, in the type that ``row`` is of."""
    HALF: tl.constexpr = (DIM + 1) // 2
    to: tl.constexpr = row.dtype.element_ty
    if INTERLEAVED:
        at = 2 * channel[None, :, None] + tl.arange(0, 2)[None, None, :]
        inside = here[:, :, None] & (channel < HALF)[None, :, None]
        tl.store(row[:, :, None] + at, tl.join(low, high).to(to), mask=inside)
    else:
        tl.store(row + channel[None, :], low.to(to), mask=here & (channel < HALF)[None, :])
        tl.store(row + HALF + channel[None, :], high.to(to), mask=here & (HALF + channel < DIM)[None, :])


@triton.jit
def _angles(
    table,
    base,
    place,
    channel,
    t,
    h,
    w,
    TABLES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    COUNT_T: tl.constexpr,
    COUNT_H: tl.constexpr,
    COUNT_W: tl.constexpr,
):
    """One token's row of a table: those of the first and of the second channels, zeros beyond."""
    if TABLES == FACTORED:
        row_t = place // (h * w) * COUNT_T
        row_h = t * COUNT_T + place // w % h * COUNT_H - COUNT_T
        row_w = t * COUNT_T + h * COUNT_H + place % w * COUNT_W - COUNT_T - COUNT_H
        row = tl.where(channel < COUNT_T, row_t, tl.where(channel < COUNT_T + COUNT_H, row_h, row_w))
        low = tl.load(table + base + row + channel, mask=channel < HALF, other=0.0)
        high = low
    elif INTERLEAVED:
        at = table + base + place.to(tl.int64) * DIM + 2 * channel[:, None] + tl.arange(0, 2)[None, :]
        pairs = tl.load(at, mask=(channel < HALF)[:, None], other=0.0)
        low, high = tl.split(pairs)
    else:
        at = table + base + place.to(tl.int64) * DIM + channel
        low = tl.load(at, mask=channel < HALF, other=0.0)
        high = tl.load(at + HALF, mask=channel < HALF, other=0.0)
    return low, high


@triton.jit
def _forward_token(
    x,
    weight,
    cos,
    sin,
    out,
    rstd,
    token,
    length,
    stride,
    table_stride,
    t,
    h,
    w,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TABLES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COUNT_T: tl.constexpr,
    COUNT_H: tl.constexpr,
    COUNT_W: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    HALF: tl.constexpr = (DIM + 1) // 2
    channel = tl.arange(0, BLOCK_HALF)
    one = tl.zeros([1, 1], tl.int32)
    w_low, w_high = _load_pairs(weight + one, channel, one == 0, DIM, INTERLEAVED)
    if TABLES != NOTHING:
        place = token % length
        base = (token // length).to(tl.int64) * table_stride
        c_low, c_high = _angles(
            cos, base, place, channel, t, h, w, TABLES, INTERLEAVED, DIM, HALF, COUNT_T, COUNT_H, COUNT_W
        )
        s_low, s_high = _angles(
            sin, base, place, channel, t, h, w, TABLES, INTERLEAVED, DIM, HALF, COUNT_T, COUNT_H, COUNT_W
        )
    row = token.to(tl.int64)
    for first in range(0, HEADS, BLOCK_HEADS):
        head = first + tl.arange(0, BLOCK_HEADS)
        here = (head < HEADS)[:, None]
        at = head[:, None] * DIM
        low, high = _load_pairs(x + row * stride + at, channel, here, DIM, INTERLEAVED)
        factor = tl.rsqrt(tl.sum(low * low + high * high, 1) * (1.0 / DIM) + eps)
        tl.store(rstd + row * HEADS + head, factor, mask=head < HEADS)
        low *= factor[:, None] * w_low
        high *= factor[:, None] * w_high
        if TABLES != NOTHING:
            turned = low * c_low[None, :] - high * s_low[None, :]
            high = high * c_high[None, :] + low * s_high[None, :]
            low = turned
        _store_pairs(out + row * HEADS * DIM + at, low, high, channel, here, DIM, INTERLEAVED)


@triton.jit
def norm_rope_forward(
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
    q_tokens,
    q_length,
    k_length,
    q_stride,
    k_stride,
    table_stride,
    t,
    h,
    w,
    eps,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TABLES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COUNT_T: tl.constexpr,
    COUNT_H: tl.constexpr,
    COUNT_W: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token = tl.program_id(0)
    if token < q_tokens:
        _forward_token(
            q, q_weight, cos, sin, q_out, q_rstd, token, q_length, q_stride, table_stride, t, h, w, eps,
            Q_HEADS, DIM, TABLES, INTERLEAVED, COUNT_T, COUNT_H, COUNT_W, Q_BLOCK, BLOCK_HALF,
        )  # fmt: skip
    else:
        _forward_token(
            k, k_weight, cos, sin, k_out, k_rstd, token - q_tokens, k_length, k_stride, table_stride, t, h, w,
            eps, K_HEADS, DIM, TABLES, INTERLEAVED, COUNT_T, COUNT_H, COUNT_W, K_BLOCK, BLOCK_HALF,
        )  # fmt: skip


@triton.jit
def _backward_tokens(
    grad,
    x,
    weight,
    rstd,
    cos,
    sin,
    dx,
    partial,
    chunk,
    tokens,
    length,
    stride,
    table_stride,
    t,
    h,
    w,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TABLES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COUNT_T: tl.constexpr,
    COUNT_H: tl.constexpr,
    COUNT_W: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    DX: tl.constexpr,
    DWEIGHT: tl.constexpr,
):
    """dx of one chunk of tokens, and ``partial`` [DIM], the chunk's share of the weight's gradient; what is
    not wanted is left out."""
    HALF: tl.constexpr = (DIM + 1) // 2
    channel = tl.arange(0, BLOCK_HALF)
    one = tl.zeros([1, 1], tl.int32)
    w_low, w_high = _load_pairs(weight + one, channel, one == 0, DIM, INTERLEAVED)
    sum_low = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
    sum_high = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
    first_token = chunk * TOKENS
    for step in range(0, tl.minimum(TOKENS, tokens - first_token)):
        token = first_token + step
        if TABLES != NOTHING:
            place = token % length
            base = (token // length).to(tl.int64) * table_stride
            c_low, c_high = _angles(
                cos, base, place, channel, t, h, w, TABLES, INTERLEAVED, DIM, HALF, COUNT_T, COUNT_H, COUNT_W
            )
            s_low, s_high = _angles(
                sin, base, place, channel, t, h, w, TABLES, INTERLEAVED, DIM, HALF, COUNT_T, COUNT_H, COUNT_W
            )
        row = token.to(tl.int64)
        for first in range(0, HEADS, BLOCK_HEADS):
            head = first + tl.arange(0, BLOCK_HEADS)
            here = (head < HEADS)[:, None]
            at = head[:, None] * DIM
            g_low, g_high = _load_pairs(grad + row * HEADS * DIM + at, channel, here, DIM, INTERLEAVED)
            factor = tl.load(rstd + row * HEADS + head, mask=head < HEADS, other=0.0)[:, None]
            x_low, x_high = _load_pairs(x + row * stride + at, channel, here, DIM, INTERLEAVED)
            x_low *= factor
            x_high *= factor
            if TABLES != NOTHING:
                turned = g_low * c_low[None, :] + g_high * s_high[None, :]
                g_high = g_high * c_high[None, :] - g_low * s_low[None, :]
                g_low = turned
            if DWEIGHT:
                sum_low += g_low * x_low
                sum_high += g_high * x_high
            if DX:
                g_low *= w_low
                g_high *= w_high
                along = (tl.sum(g_low * x_low + g_high * x_high, 1) * (1.0 / DIM))[:, None]
                low, high = factor * (g_low - x_low * along), factor * (g_high - x_high * along)
                _store_pairs(dx + row * HEADS * DIM + at, low, high, channel, here, DIM, INTERLEAVED)
    if DWEIGHT:
        if INTERLEAVED:
            at = 2 * channel[:, None] + tl.arange(0, 2)[None, :]
            sums = tl.join(tl.sum(sum_low, 0), tl.sum(sum_high, 0))
            tl.store(partial + at, sums, mask=(channel < HALF)[:, None])
        else:
            tl.store(partial + channel, tl.sum(sum_low, 0), mask=channel < HALF)
            tl.store(partial + HALF + channel, tl.sum(sum_high, 0), mask=HALF + channel < DIM)


@triton.jit
def norm_rope_backward(
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
    dq,
    dk,
    partials,
    q_chunks,
    q_tokens,
    k_tokens,
    q_length,
    k_length,
    q_stride,
    k_stride,
    table_stride,
    t,
    h,
    w,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TABLES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COUNT_T: tl.constexpr,
    COUNT_H: tl.constexpr,
    COUNT_W: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    WANTED: tl.constexpr,
):
    """WANTED: bits for dq, dk and the shares of the gradients of their weights."""
    chunk = tl.program_id(0)
    partial = partials
    if WANTED // 4 != 0:
        partial = partials + chunk * DIM
    if chunk < q_chunks:
        _backward_tokens(
            q_grad, q, q_weight, q_rstd, cos, sin, dq, partial, chunk, q_tokens, q_length, q_stride,
            table_stride, t, h, w, Q_HEADS, DIM, TABLES, INTERLEAVED, COUNT_T, COUNT_H, COUNT_W, Q_BLOCK,
            BLOCK_HALF, TOKENS, WANTED % 2 == 1, WANTED // 4 % 2 == 1,
        )  # fmt: skip
    else:
        _backward_tokens(
            k_grad, k, k_weight, k_rstd, cos, sin, dk, partial, chunk - q_chunks, k_tokens, k_length,
            k_stride, table_stride, t, h, w, K_HEADS, DIM, TABLES, INTERLEAVED, COUNT_T, COUNT_H, COUNT_W,
            K_BLOCK, BLOCK_HALF, TOKENS, WANTED // 2 % 2 == 1, WANTED // 8 % 2 == 1,
        )  # fmt: skip
