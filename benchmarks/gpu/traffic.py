"""Bytes that our Triton kernels ask memory for, derived from the launches themselves.

The operators run on tensors without storage while their launches are written down instead of made. A kernel
that touches each element of its tensors once moves the sum of their sizes: statistics kept for backward and
partial sums, written by one kernel and read by the next, are among them. A kernel that walks over a tensor
several times is listed in :data:`PASSES`.

Modulation, weights and tables, which every block reads anew from the cache, count once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.work import Shape


def _blocks(launch: Any) -> int:
    """Programs along the first axis: blocks of queries or of keys."""
    return int(launch.grid[0])


PASSES: dict[tuple[str, str], Callable[[Any], int]] = {
    **{(kernel, x): _blocks for kernel in ("attention_forward", "attention_dq") for x in ("k", "v")},
    **{("attention_dkdv", x): _blocks for x in ("q", "grad", "lse", "delta")},
}
"""(kernel, argument) -> how often a launch of it reads that tensor as a whole: every block of queries walks
over all keys and values of its head, every block of keys over all queries."""


@dataclass(frozen=True)
class Traffic:
    """What one operator in one direction launches."""

    moved: int
    """Bytes."""
    launches: int


def _nbytes(kernel: str, name: str, value: Tensor, launch: Any) -> int:
    passes = PASSES.get((kernel, name), lambda _: 1)(launch)
    return passes * value.numel() * value.element_size()


def traffic(call: Callable[[], object], arch: int) -> Traffic:
    """What ``call``, which runs an operator on ``meta`` tensors, would move on an architecture."""
    from cosmos_distill.ops.launch import record

    with record(arch) as launches:
        call()
    moved = sum(
        _nbytes(launch.kernel.__name__, name, value, launch)
        for launch in launches
        for name, value in launch.arguments.items()
        if isinstance(value, Tensor)
    )
    return Traffic(moved, len(launches))


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _adaln(shape: Shape, kernels: Any) -> dict[tuple[str, str], Callable[[], object]]:
    size = (1, shape.groups, shape.tokens // shape.groups, shape.channels)
    x = _empty(*size, dtype=torch.bfloat16)
    m = _empty(1, shape.groups, shape.channels)
    stats = _empty(*size[:-1], 2)
    return {
        ("adaln_modulate", "fwd"): lambda: kernels.adaln_modulate(x, m, m, 1e-6),
        ("adaln_modulate", "bwd"): lambda: kernels.adaln_modulate_backward(x, x, stats, m),
        ("gated_residual_adaln", "fwd"): lambda: kernels.gated_residual_adaln(x, x, m, m, m, 1e-6),
        ("gated_residual_adaln", "bwd"): lambda: kernels.gated_residual_adaln_backward(
            x, x, x, x, stats, m, m
        ),
    }


def _qk_norm_rope(shape: Shape, kernels: Any) -> dict[tuple[str, str], Callable[[], object]]:
    q = _empty(1, shape.tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16)
    weight, rstd = _empty(shape.head_dim), _empty(*q.shape[:3])
    half = shape.head_dim // 2
    angles = (half - 2 * (half // 3), half // 3, half // 3)
    sizes = (shape.frames, shape.height, shape.width)
    grid = (*sizes, *angles)
    table = _empty(sum(length * count for length, count in zip(sizes, angles, strict=True)))
    both = (weight, weight)
    return {
        ("qk_norm_rope", "fwd"): lambda: kernels.qk_norm_rope(q, q, *both, table, table, grid, 1e-6),
        ("qk_norm_rope", "bwd"): lambda: kernels.qk_norm_rope_backward(
            q, q, q, q, *both, rstd, rstd, table, table, grid
        ),
    }


def _attention(shape: Shape, kernels: Any) -> dict[tuple[str, str], Callable[[], object]]:
    q = _empty(1, shape.tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16)
    lse = _empty(1, shape.heads, shape.tokens)
    scale = shape.head_dim**-0.5
    return {
        ("attention", "fwd"): lambda: kernels.attention(q, q, q, scale),
        ("attention", "bwd"): lambda: kernels.attention_backward(q, None, q, q, q, q, lse, scale),
    }


def _dm_loss(shape: Shape, kernels: Any) -> dict[tuple[str, str], Callable[[], object]]:
    x, one = _empty(*shape.latent), _empty(1)
    return {
        ("renoise", "fwd"): lambda: kernels.renoise(x, x, None, one),
        ("vsd_loss", "fwd"): lambda: kernels.vsd(x, x, x, x, None, 5.0, None, None),
        ("vsd_loss", "bwd"): lambda: kernels.vsd_gradient(x, one),
        ("fake_score_loss", "fwd"): lambda: kernels.squared_error(x, x, None, None, None),
        ("fake_score_loss", "bwd"): lambda: kernels.squared_error_gradient(one, x, x, None, None, None),
    }


_CALLS = {"adaln": _adaln, "qknorm": _qk_norm_rope, "attn": _attention, "dm_loss": _dm_loss}


def traffics(shape: Shape, arch: int) -> dict[tuple[str, str], Traffic]:
    """(operator, "fwd" or "bwd") -> what its Triton kernels move, for the operators that have them."""
    found = {}
    for folder, calls in _CALLS.items():
        try:
            kernels = importlib.import_module(f"cosmos_distill.ops.{folder}.triton")
        except ModuleNotFoundError as error:
            if error.name != f"cosmos_distill.ops.{folder}.triton":
                raise
            continue
        for key, call in calls(shape, kernels).items():
            found[key] = traffic(call, arch)
    return found
