"""Adaptive LayerNorm of diffusion transformers (DiT, arXiv 2212.09748, section 3.2), or RMSNorm (arXiv
1910.07467) in its place, alone and fused with the gated residual before it; and that residual alone.

x is [B, N, D] with modulation [B, D] (one per sample), or [B, T, N, D] with modulation [B, T, D] (one per
frame), or, as in Cosmos, [B, T, H, W, D] with modulation [B, T, 1, 1, D]. What has as many axes as x and
broadcasts to it is modulation, too (per token in the extreme), and any of one row for all, such as [1, D].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import registry
from ..checks import DTYPES, beside, choice, floating, like, number
from . import fused, reference

__all__ = ["adaln_modulate", "gated_residual", "gated_residual_adaln"]

registry.serve(
    "adaln",
    adaln_modulate=registry.FUSED,
    gated_residual_adaln=registry.FUSED,
    gated_residual=registry.FUSED,
)

NORMS = ("layer", "rms")
_BRANCH = (torch.bfloat16, torch.float16)
"""Dtypes of what goes through a sub-layer while the residual stream stays fp32, as under torch.autocast."""


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


def _check_dtype(dtype: torch.dtype | None, x: Tensor) -> torch.dtype | None:
    """None for x's own."""
    if dtype is None or dtype == x.dtype:
        return None
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be torch.float64, float32, bfloat16, float16 or None, not {dtype!r}")
    return dtype


def _pick(
    operator: str,
    backend: str | None,
    x: Tensor,
    y: Tensor | None,
    dtype: torch.dtype | None,
    *rows: Tensor,
) -> str:
    """The backend: kernels have one dtype for all, or an fp32 residual stream x beside one narrower dtype."""
    others = {one for one in (None if y is None else y.dtype, dtype) if one is not None} - {x.dtype}
    mixed = bool(others) and (x.dtype != torch.float32 or len(others) > 1 or not others.issubset(_BRANCH))
    return registry.pick(operator, backend, x, mixed=mixed, learned=(x, y, *rows))


def _in_a_row(m: Tensor) -> Tensor:
    """Rows of groups, those told by more than two axes one after the other."""
    return m.flatten(0, -2) if m.dim() > 3 else m


def adaln_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    norm: Literal["layer", "rms"] = "layer",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` over the last axis, without learned affine.

    Args:
        x: [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        shift: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively, 1 in the place of any but D, or with as many
            axes as x, each of x's size or 1. Of any dtype, whatever x's is.
        scale: like shift.
        eps: added to the variance (``rms``: to the mean square), at least 0.
        norm: ``layer`` (LayerNorm) or ``rms`` (RMSNorm: no mean is taken off).
        dtype: of the result; None is x's. Kernels narrow fp32 to bf16 or fp16 (the input of a linear layer
            under torch.autocast); other changes of dtype are served by the reference.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        Same shape as x. The arithmetic is fp32 (fp64 for fp64). Backward computes the gradients that are
        asked for, and nothing else.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, eps is negative, or there is no such norm;
            the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_tokens(x)
    number("eps", eps, 0)
    choice("norm", norm, NORMS)
    dtype = _check_dtype(dtype, x)
    count, (shift, scale) = _groups(x, shift=shift, scale=scale)
    if count != x.dim() - 2 or count > 2:
        rows = _in_a_row(shift), _in_a_row(scale)
        result = adaln_modulate(_by_group(x, count), *rows, eps, norm=norm, dtype=dtype, backend=backend)
        return result.reshape(x.shape)
    chosen = _pick("adaln_modulate", backend, x, None, dtype, shift, scale)
    if chosen == "reference":
        return reference.adaln_modulate(x, shift, scale, eps, norm == "rms", dtype)
    return fused.adaln_modulate(x, shift, scale, eps, norm == "rms", dtype, chosen)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, *, backend: str | None = None) -> Tensor:
    """``x + gate * y``: the end of a block whose output nothing normalises at once.

    Args:
        x: residual stream, [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        y: output of the sub-layer, same shape as x; of its dtype or, beside an fp32 x, of bf16 or fp16.
        gate: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively, or as in :func:`adaln_modulate`.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        x's shape and dtype. The arithmetic is fp32 (fp64 for fp64).

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_tokens(x)
    like("y", y, x.shape, "x", x)
    count, (gate,) = _groups(x, gate=gate)
    if count != x.dim() - 2 or count > 2:
        tokens = _by_group(x, count), _by_group(y, count)
        return gated_residual(*tokens, _in_a_row(gate), backend=backend).reshape(x.shape)
    chosen = _pick("gated_residual", backend, x, y, None, gate)
    if chosen == "reference":
        return reference.gated_residual(x, y, gate)
    return fused.gated_residual(x, y, gate, chosen)


def gated_residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    norm: Literal["layer", "rms"] = "layer",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``x_new = x + gate * y`` and ``h = norm(x_new) * (1 + scale) + shift``.

    What stands between two sub-layers of a diffusion transformer: close the residual of one, open the
    next.

    Args:
        x: residual stream, [B, N, D], [B, T, N, D] or [B, T, H, W, D].
        y: output of the sub-layer, same shape as x; of its dtype or, beside an fp32 x, of bf16 or fp16. Other
            mixtures are served by the reference.
        gate: [B, D], [B, T, D] or [B, T, 1, 1, D] respectively, or as in :func:`adaln_modulate`; like shift
            and scale of any dtype.
        shift: like gate.
        scale: like gate.
        eps: as in :func:`adaln_modulate`.
        norm: as in :func:`adaln_modulate`.
        dtype: of h; None is x's. y's, where that is narrower, is what a linear layer under torch.autocast
            takes.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Returns:
        (x_new, h) of x's shape, x_new of its dtype. The statistics are those of x_new as rounded to it.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit, eps is negative, or there is no such norm;
            the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_tokens(x)
    like("y", y, x.shape, "x", x)
    number("eps", eps, 0)
    choice("norm", norm, NORMS)
    dtype = _check_dtype(dtype, x)
    count, (gate, shift, scale) = _groups(x, gate=gate, shift=shift, scale=scale)
    if count != x.dim() - 2 or count > 2:
        x_new, h = gated_residual_adaln(
            _by_group(x, count),
            _by_group(y, count),
            _in_a_row(gate),
            _in_a_row(shift),
            _in_a_row(scale),
            eps,
            norm=norm,
            dtype=dtype,
            backend=backend,
        )
        return x_new.reshape(x.shape), h.reshape(x.shape)
    chosen = _pick("gated_residual_adaln", backend, x, y, dtype, gate, shift, scale)
    if chosen == "reference":
        return reference.gated_residual_adaln(x, y, gate, shift, scale, eps, norm == "rms", dtype)
    return fused.gated_residual_adaln(x, y, gate, shift, scale, eps, norm == "rms", dtype, chosen)
