"""Per-head RMSNorm of queries and keys (arXiv 2302.05442) followed by rotary position embedding
(RoFormer, arXiv 2104.09864, in the rotate-half layout)."""

from __future__ import annotations

from torch import Tensor

from .. import registry
from . import reference

__all__ = ["qk_norm_rope"]

registry.traceable("qk_norm_rope", "reference", reference.qk_norm_rope)


def _check_table(name: str, table: Tensor, q: Tensor) -> None:
    batch, length, _, head_dim = q.shape
    if table.shape not in ((length, head_dim), (batch, length, head_dim)):
        raise ValueError(
            f"{name} must be [{length}, {head_dim}] or [{batch}, {length}, {head_dim}] for q of shape "
            f"{list(q.shape)}, not {list(table.shape)}"
        )
    if table.device != q.device:
        raise ValueError(f"{name} is on {table.device} but q is on {q.device}")


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    eps: float = 1e-6,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm over each head's channels, then rotate channel i with channel i + Dh/2.

    ``n = x / sqrt(mean(x^2) + eps) * weight`` and ``n * cos + rotate_half(n) * sin`` with
    ``rotate_half((a, b)) = (-b, a)``, for x = q and x = k.

    Args:
        q: [B, S, H, Dh].
        k: [B, S', H', Dh]; S' must equal S when tables are given, and is free otherwise.
        q_weight: [Dh].
        k_weight: [Dh].
        cos: fp32 cosines of the angles, [S, Dh] or [B, S, Dh]; None only normalises.
        sin: like cos, given exactly when cos is.
        eps: added to the mean square.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        (q, k) normalised and rotated, in their own shapes and dtypes. The arithmetic is fp32 (fp64 for
        fp64).

    Raises:
        ValueError: a shape or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    for name, x, weight in (("q", q, q_weight), ("k", k, k_weight)):
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, S, H, Dh], not {tuple(x.shape)}")
        if weight.shape != x.shape[-1:]:
            raise ValueError(f"{name}_weight must be [{x.shape[-1]}], not {list(weight.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"k must share q's batch and head size {q.shape[0]} and {q.shape[-1]}, but has {list(k.shape)}"
        )
    if (cos is None) != (sin is None):
        missing = "cos" if cos is None else "sin"
        raise ValueError(f"{missing} is missing: give both tables or neither")
    if cos is not None and sin is not None:
        if q.shape[-1] % 2:
            raise ValueError(
                f"q has head size {q.shape[-1]}, but rotary embedding pairs channels: use an even one"
            )
        if k.shape[1] != q.shape[1]:
            raise ValueError(f"k has length {k.shape[1]} but q, whose tables it shares, has {q.shape[1]}")
        _check_table("cos", cos, q)
        _check_table("sin", sin, q)
    serve = registry.resolve("qk_norm_rope", backend, q, k, q_weight, k_weight)
    both: tuple[Tensor, Tensor] = serve(q, k, q_weight, k_weight, cos, sin, eps)
    return both
