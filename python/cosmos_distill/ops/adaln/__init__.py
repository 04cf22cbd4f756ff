"""Adaptive LayerNorm of diffusion transformers (DiT, arXiv 2212.09748, section 3.2), alone and fused
with the gated residual before it.

x is [B, N, D] with modulation [B, D] (one per sample), or [B, T, N, D] with modulation [B, T, D] (one
per frame), or, as in Cosmos, [B, T, H, W, D] with modulation [B, T, 1, 1, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import registry
from ..checks import floating, like
from . import fused, reference

__all__ = ["adaln_modulate", "gated_residual_adaln"]

registry.serve("adaln", adaln_modulate=registry.FUSED, gated_residual_adaln=registry.FUSED)


def _check_tokens(x: Tensor) -> torch.Size:
    """The shape of x's modulation."""
    floating("x", x)
    if x.dim() not in (3, 4, 5):
        raise ValueError(f"x must be [B, N, D], [B, T, N, D] or [B, T, H, W, D], not {tuple(x.shape)}")
    if x.dim() == 5:
        return torch.Size((*x.shape[:2], 1, 1, x.shape[-1]))
    return x.shape[:-2] + x.shape[-1:]


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, backend: str | None = None
) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift`` over the last axis, without learned affine.

    Args:
        x: [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        shift: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively.
        scale: like shift.
        eps: added to the variance.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        Same shape and dtype as x. The arithmetic is fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    shape = _check_tokens(x)
    like("shift", shift, shape, "x", x)
    like("scale", scale, shape, "x", x)
    if x.dim() == 5:  # views [B, T, N, D] and [B, T, D]
        flat = x.flatten(2, 3), shift.flatten(1, 3), scale.flatten(1, 3)
        return adaln_modulate(*flat, eps, backend=backend).unflatten(2, x.shape[2:4])
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
        gate: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively.
        shift: like gate.
        scale: like gate.
        eps: added to the variance.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        (x_new, h), both of x's shape and dtype.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    shape = _check_tokens(x)
    like("y", y, x.shape, "x", x)
    like("gate", gate, shape, "x", x)
    like("shift", shift, shape, "x", x)
    like("scale", scale, shape, "x", x)
    if x.dim() == 5:
        rows = gate.flatten(1, 3), shift.flatten(1, 3), scale.flatten(1, 3)
        x_new, h = gated_residual_adaln(x.flatten(2, 3), y.flatten(2, 3), *rows, eps, backend=backend)
        return x_new.unflatten(2, x.shape[2:4]), h.unflatten(2, x.shape[2:4])
    chosen = registry.pick("gated_residual_adaln", backend, x, y)
    if chosen == "reference":
        return reference.gated_residual_adaln(x, y, gate, shift, scale, eps)
    return fused.gated_residual_adaln(x, y, gate, shift, scale, eps, chosen)
