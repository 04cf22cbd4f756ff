"""Adaptive LayerNorm of diffusion transformers (DiT, arXiv 2212.09748, section 3.2), alone and fused
with the gated residual before it.

x is [B, N, D] with modulation [B, D] (one per sample), or [B, T, N, D] with modulation [B, T, D] (one per
frame), or, as in Cosmos, [B, T, H, W, D] with modulation [B, T, 1, 1, D]. What has as many axes as x and
broadcasts to it is modulation, too (per token in the extreme), and any of one row for all, such as [1, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import registry
from ..checks import beside, floating, like, number
from . import fused, reference

__all__ = ["adaln_modulate", "gated_residual_adaln"]

registry.serve("adaln", adaln_modulate=registry.FUSED, gated_residual_adaln=registry.FUSED)


def _check_tokens(x: Tensor) -> None:
    floating("x", x)
    if x.dim() not in (3, 4, 5):
        raise ValueError(f"x must be [B, N, D], [B, T, N, D] or [B, T, H, W, D], not {tuple(x.shape)}")


def _every_axis(name: str, m: Tensor, x: Tensor) -> Tensor:
    """Modulation with as many axes as x, each of x's size or 1."""
    short = x.shape[:-2] + x.shape[-1:] if x.dim() < 5 else torch.Size((*x.shape[:2], 1, 1, x.shape[-1]))
    if m.dim() and m.shape[-1] == x.shape[-1] and m.dim() <= x.dim():
        if all(n == 1 for n in m.shape[:-1]):
            whole = m.reshape((1,) * (x.dim() - 1) + m.shape[-1:])
        else:
            whole = m.unsqueeze(-2) if m.dim() == x.dim() - 1 < 4 else m
        sizes = zip(whole.shape, x.shape, strict=False)
        if whole.dim() == x.dim() and all(n in (1, most) for n, most in sizes):
            return whole
    like(name, m, short, "x", x)
    raise AssertionError


def _groups(x: Tensor, **rows: Tensor) -> tuple[int, list[Tensor]]:
    """How many of x's first axes tell groups of tokens that share their modulation, and a row [*G, D] for
    each."""
    shape = x.shape[:-2] + x.shape[-1:]
    for name, m in rows.items():
        floating(name, m)
        beside(name, m, "x", x)
    if x.dim() < 5 and all(m.shape == shape for m in rows.values()):
        return x.dim() - 2, list(rows.values())
    every = [_every_axis(name, m, x) for name, m in rows.items()]
    axes = [axis for axis in range(x.dim() - 1) if any(m.size(axis) != 1 for m in every)]
    count = max(axes, default=0) + 1
    short = [m.reshape(*m.shape[:count], m.shape[-1]) for m in every]
    return count, [m.expand(*x.shape[:count], m.shape[-1]) for m in short]


def _by_group(x: Tensor, count: int) -> Tensor:
    """[*G, N, D], or [G, N, D] where groups are told by more than two axes."""
    x = x.flatten(count, -2) if count < x.dim() - 1 else x.unsqueeze(-2)
    return x.flatten(0, count - 1) if count > 2 else x


def _in_a_row(m: Tensor) -> Tensor:
    """Rows of groups, those told by more than two axes one after the other."""
    return m.flatten(0, -2) if m.dim() > 3 else m


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, backend: str | None = None
) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift`` over the last axis, without learned affine.

    Args:
        x: [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        shift: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively, 1 in the place of any but D, or with as many
            axes as x, each of x's size or 1.
        scale: like shift.
        eps: added to the variance, at least 0.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        Same shape and dtype as x. The arithmetic is fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or eps is negative; the message names the
            argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_tokens(x)
    number("eps", eps, 0)
    count, (shift, scale) = _groups(x, shift=shift, scale=scale)
    if count != x.dim() - 2 or count > 2:
        result = adaln_modulate(_by_group(x, count), _in_a_row(shift), _in_a_row(scale), eps, backend=backend)
        return result.reshape(x.shape)
    chosen = registry.pick("adaln_modulate", backend, x)
    if chosen == "reference":
        return reference.adaln_modulate(x, shift, scale, eps)
    return fused.adaln_modulate(x, shift, scale, eps, chosen)


def gated_residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``x_new = x + gate * y`` and ``h = layer_norm(x_new) * (1 + scale) + shift``.

    What stands between two sub-layers of a diffusion transformer: close the residual of one, open the
    next.

    Args:
        x: residual stream, [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        y: output of the sub-layer, same shape as x.
        gate: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively, or as in :func:`adaln_modulate`.
        shift: like gate.
        scale: like gate.
        eps: added to the variance, at least 0.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        (x_new, h), both of x's shape and dtype.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, or eps is negative; the message names the
            argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_tokens(x)
    like("y", y, x.shape, "x", x)
    number("eps", eps, 0)
    count, (gate, shift, scale) = _groups(x, gate=gate, shift=shift, scale=scale)
    if count != x.dim() - 2 or count > 2:
        x_new, h = gated_residual_adaln(
            _by_group(x, count),
            _by_group(y, count),
            _in_a_row(gate),
            _in_a_row(shift),
            _in_a_row(scale),
            eps,
            backend=backend,
        )
        return x_new.reshape(x.shape), h.reshape(x.shape)
    chosen = registry.pick("gated_residual_adaln", backend, x, y)
    if chosen == "reference":
        return reference.gated_residual_adaln(x, y, gate, shift, scale, eps)
    return fused.gated_residual_adaln(x, y, gate, shift, scale, eps, chosen)
