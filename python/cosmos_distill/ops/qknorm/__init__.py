"""Per-head RMSNorm of queries and keys (arXiv 2302.05442) followed by rotary position embedding
(RoFormer, arXiv 2104.09864, in the rotate-half or the interleaved layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import registry
from ..checks import beside, flag, floating, like, number
from . import fused, reference
from .pairs import check_pairs

__all__ = ["qk_norm_rope"]

# On CUDA devices a block keeps eight rows of sums over a head in shared memory.
registry.serve(
    "qknorm",
    qk_norm_rope=(
        replace(registry.CUDA, largest_head=2048),
        registry.TRITON,
        registry.CPU,
        registry.REFERENCE,
    ),
)

Angles = tuple[Tensor, Tensor, Tensor]


def _check_tables(cos: Tensor, sin: Tensor, q: Tensor) -> None:
    floating("cos", cos)
    batch, length, _, head_dim = q.shape
    if cos.shape not in ((length, head_dim), (batch, length, head_dim)):
        raise ValueError(
            f"cos must be [{length}, {head_dim}] or [{batch}, {length}, {head_dim}] for q of shape "
            f"{list(q.shape)}, not {list(cos.shape)}"
        )
    beside("cos", cos, "q", q)
    like("sin", sin, cos.shape, "cos", cos)


def _check_angles(angles: Angles, q: Tensor) -> tuple[int, ...]:
    """The grid (T, H, W, a, b, c) that the angles span."""
    batch, length, _, head_dim = q.shape
    if not isinstance(angles, Sequence) or len(angles) != 3:
        given = f"{len(angles)} tables" if isinstance(angles, Sequence) else type(angles).__name__
        raise ValueError(f"angles must be the tables of t, h and w, not {given}")
    for name, axes, axis in zip("thw", angles, ((2, 3), (2,), (2,)), strict=True):
        floating(f"angles of {name}", axes)
        if axes.dim() not in axis:
            raise ValueError(f"angles of {name} must be [length, frequencies], not {list(axes.shape)}")
        beside(f"angles of {name}", axes, "q", q)
    t, h, w = angles
    if t.dim() == 3 and t.shape[0] != batch:
        raise ValueError(f"angles of t must have q's batch of {batch}, not {t.shape[0]}")
    sizes = t.shape[-2], h.shape[0], w.shape[0]
    counts = t.shape[-1], h.shape[1], w.shape[1]
    if sizes[0] * sizes[1] * sizes[2] != length or 2 * sum(counts) != head_dim:
        raise ValueError(
            f"angles span {sizes[0]} x {sizes[1]} x {sizes[2]} tokens and turn {2 * sum(counts)} channels, "
            f"but q has {length} tokens and head size {head_dim}"
        )
    return *sizes, *counts


def _factored(angles: Angles) -> Tensor:
    """[L] or [B, L]: the three tables one after the other."""
    t, h, w = angles
    flat = [t.flatten(-2), h.flatten(), w.flatten()]
    if t.dim() == 3:
        flat[1:] = [axis.expand(t.shape[0], -1) for axis in flat[1:]]
    return torch.cat(flat, dim=-1)


def _full(angles: Angles, interleaved: bool) -> Tensor:
    """[S, Dh] or [B, S, Dh]: the angle of every token and channel."""
    t, h, w = angles
    shape = (*t.shape[:-2], t.shape[-2], h.shape[0], w.shape[0])
    axes = (t[..., :, None, None, :], h[:, None, :], w[None, :, :])
    half = torch.cat([axis.expand(*shape, axis.shape[-1]) for axis in axes], dim=-1)
    both = half.repeat_interleave(2, dim=-1) if interleaved else torch.cat([half, half], dim=-1)
    return both.flatten(-4, -2)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    eps: float = 1e-6,
    *,
    angles: Angles | None = None,
    interleaved: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm over each head's channels, then rotate channels in pairs.

    ``n = x / sqrt(mean(x^2) + eps) * weight`` and ``n * cos + turned(n) * sin``, where ``turned`` makes (-b,
    a) of each pair (a, b), for x = q and x = k. A pair are channels i and i + Dh/2 (``rotate_half``: Cosmos,
    Llama) or, ``interleaved``, channels 2i and 2i + 1 (complex numbers: Wan, LTX-Video, Flux, CogVideoX).

    Args:
        q: [B, S, H, Dh].
        k: [B, S', H', Dh]; S' must equal S when tables are given, and is free otherwise.
        q_weight: [Dh].
        k_weight: [Dh].
        cos: fp32 cosines of the angles, [S, Dh] or [B, S, Dh]; None only normalises. Tables and angles that
            require a gradient are served by the reference.
        sin: like cos, of the same shape, given exactly when cos is.
        eps: added to the mean square, at least 0.
        angles: instead of cos and sin, fp32 radians of the token grid's axes, t [T, a] or [B, T, a], h [H, b]
            and w [W, c]: token (t, h, w), the t * H * W + h * W + w-th, turns the i-th pair of channels by
            the i-th of its a + b + c angles. Tables of every token never exist.
        interleaved: neighbours are turned with each other. Tables have an angle for every channel: with equal
            ones for i and i + Dh/2 or, interleaved, for 2i and 2i + 1.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        (q, k) normalised and rotated, in their own shapes and dtypes. The arithmetic is fp32 (fp64 for
        fp64).

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, eps is negative, or the angles of cos and
            sin pair channels in the other way (looked for once in tables of a kind, and not while tracing);
            the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    number("eps", eps, 0)
    flag("interleaved", interleaved)
    for name, x, weight in (("q", q, q_weight), ("k", k, k_weight)):
        floating(name, x)
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, S, H, Dh], not {tuple(x.shape)}")
        like(f"{name}_weight", weight, x.shape[-1:], name, x)
    if k.shape[0] != q.shape[0] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"k must share q's batch and head size {q.shape[0]} and {q.shape[-1]}, but has {list(k.shape)}"
        )
    beside("k", k, "q", q)
    if (cos is None) != (sin is None):
        missing = "cos" if cos is None else "sin"
        raise ValueError(f"{missing} is missing: give both tables or neither")
    if angles is not None and cos is not None:
        raise ValueError("angles and cos, sin say the same thing: give one of them")
    grid: tuple[int, ...] = ()
    if angles is not None or cos is not None:
        if q.shape[-1] % 2:
            raise ValueError(
                f"q has head size {q.shape[-1]}, but rotary embedding pairs channels: use an even one"
            )
        if k.shape[1] != q.shape[1]:
            raise ValueError(f"k has length {k.shape[1]} but q, whose tables it shares, has {q.shape[1]}")
    if cos is not None and sin is not None:
        _check_tables(cos, sin, q)
        check_pairs(cos, sin, interleaved)
    if angles is not None:
        grid = _check_angles(angles, q)
    tables = (cos, sin, *(angles or ()))
    # Reentrant checkpointing first runs without gradients, and may get another backend then.
    learned = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tables)
    wanted = ("gradient of rotary tables",) if learned else ()
    differentiated = (q, k, q_weight, k_weight, *tables)
    chosen = registry.pick(
        "qk_norm_rope", backend, q, k, head=q.shape[-1], wanted=wanted, learned=differentiated
    )
    if chosen == "reference":
        if angles is not None:
            full = _full(angles, interleaved)
            cos, sin = full.cos(), full.sin()
        return reference.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, interleaved, eps)
    if angles is not None:
        packed = _factored(angles)
        cos, sin = packed.cos(), packed.sin()
    turned = interleaved and cos is not None
    return fused.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, grid, turned, eps, chosen)
