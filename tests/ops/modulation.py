"""What every backend's tests of adaptive LayerNorm share."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill import ops


def tokens(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x, y and (gate, shift, scale), with a mean that a careless variance would lose."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * 3 + 5
    y = torch.randn(shape, generator=draw)
    return x, y, [torch.randn(shape[:-2] + shape[-1:], generator=draw) for _ in range(3)]


def assert_sums_are_rounded_to_nearest(backend: str, dtype: torch.dtype) -> None:
    """More than the rule asks: cutting off is at most twice as far off."""
    x, y, modulation = tokens((2, 5, 64))
    inputs = [t.to(dtype) for t in (x, y, *modulation)]
    exact = ops.gated_residual_adaln(*(t.double() for t in inputs), backend="reference")[0]
    assert torch.equal(ops.gated_residual_adaln(*inputs, backend=backend)[0], exact.to(dtype))


def assert_a_nan_stays_in_its_row(backend: str) -> None:
    x, _, (_, shift, scale) = tokens((1, 4, 8))
    x[0, 2, 3] = float("nan")
    out = ops.adaln_modulate(x, shift, scale, backend=backend)
    assert out[0, 2].isnan().all() and out[0, [0, 1, 3]].isfinite().all()
