"""Every operator in both directions at one shape, as a backend's module of kernels is called.

The modules ops/*/triton.py and ops/*/cuda.py offer the same functions. Each tensor is one of its own, of bf16
activations and fp32 modulation, weights and latents like those of :mod:`benchmarks.gpu.work`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.work import Shape


@dataclass(frozen=True)
class Call:
    """One function of a backend's module, and what it is given."""

    folder: str
    """Of ops/."""
    function: str
    arguments: tuple[Any, ...]

    def module(self, backend: str) -> ModuleType | None:
        """ops/FOLDER/BACKEND.py; None where there is none."""
        name = f"cosmos_distill.ops.{self.folder}.{backend}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            return None


_Empty = Callable[..., Tensor]
_Calls = dict[tuple[str, str], tuple[str, tuple[Any, ...]]]


def _adaln(shape: Shape, empty: _Empty) -> _Calls:
    size = (1, shape.groups, shape.tokens // shape.groups, shape.channels)
    x = partial(empty, *size, dtype=torch.bfloat16)
    m = partial(empty, 1, shape.groups, shape.channels)
    stats = partial(empty, *size[:-1], 2)
    return {
        ("adaln_modulate", "fwd"): ("adaln_modulate", (x(), m(), m(), 1e-6)),
        ("adaln_modulate", "bwd"): ("adaln_modulate_backward", (x(), x(), stats(), m())),
        ("gated_residual_adaln", "fwd"): ("gated_residual_adaln", (x(), x(), m(), m(), m(), 1e-6)),
        ("gated_residual_adaln", "bwd"): (
            "gated_residual_adaln_backward",
            (x(), x(), x(), x(), stats(), m(), m()),
        ),
    }


def _qk_norm_rope(shape: Shape, empty: _Empty) -> _Calls:
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    q = partial(empty, *size, dtype=torch.bfloat16)
    weight, rstd = partial(empty, shape.head_dim), partial(empty, *size[:3])
    half = shape.head_dim // 2
    angles = (half - 2 * (half // 3), half // 3, half // 3)
    sizes = (shape.frames, shape.height, shape.width)
    grid = (*sizes, *angles)
    table = partial(empty, sum(length * count for length, count in zip(sizes, angles, strict=True)))
    return {
        ("qk_norm_rope", "fwd"): (
            "qk_norm_rope",
            (q(), q(), weight(), weight(), table(), table(), grid, 1e-6),
        ),
        ("qk_norm_rope", "bwd"): (
            "qk_norm_rope_backward",
            (q(), q(), q(), q(), weight(), weight(), rstd(), rstd(), table(), table(), grid),
        ),
    }


def _attention(shape: Shape, empty: _Empty) -> _Calls:
    q = partial(empty, 1, shape.tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16)
    lse, scale = empty(1, shape.heads, shape.tokens), shape.head_dim**-0.5
    return {
        ("attention", "fwd"): ("attention", (q(), q(), q(), scale)),
        ("attention", "bwd"): ("attention_backward", (q(), None, q(), q(), q(), q(), lse, scale)),
    }


def _dm_loss(shape: Shape, empty: _Empty) -> _Calls:
    x, one = partial(empty, *shape.latent), partial(empty, 1)
    return {
        ("renoise", "fwd"): ("renoise", (x(), x(), None, one())),
        ("vsd_loss", "fwd"): ("vsd", (x(), x(), x(), x(), None, 5.0, None, None)),
        ("vsd_loss", "bwd"): ("vsd_gradient", (x(), one())),
        ("fake_score_loss", "fwd"): ("squared_error", (x(), x(), None, None, None)),
        ("fake_score_loss", "bwd"): ("squared_error_gradient", (one(), x(), x(), None, None, None)),
    }


_CALLS = {"adaln": _adaln, "qknorm": _qk_norm_rope, "attn": _attention, "dm_loss": _dm_loss}


def calls(shape: Shape, device: str = "meta") -> dict[tuple[str, str], Call]:
    """(operator, "fwd" or "bwd") -> its call, on tensors that hold nothing in particular."""
    empty = partial(torch.empty, device=device)
    return {
        key: Call(folder, *call)
        for folder, make in _CALLS.items()
        for key, call in make(shape, empty).items()
    }
