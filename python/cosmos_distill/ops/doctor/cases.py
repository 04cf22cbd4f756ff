"""The public operators with kernels of their own, at shapes that fill no tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cosmos_distill import ops


def draw(*shape: int, seed: int = 0) -> Tensor:
    """fp32 on the CPU, the same everywhere."""
    generator = torch.Generator("cpu").manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class Case:
    """One call: a function of tensors, which it is differentiated by, and ``backend=``."""

    operator: str
    """Of the registry."""
    name: str
    run: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    narrowed: tuple[bool, ...] | None = None
    """Which tensors take the dtype that is tried, None for all; the others stay fp32."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Tensors beside them, of which there is no gradient: by name, in fp32."""
    heads: bool = False


def cases() -> list[Case]:
    """Small: a few thousand numbers each."""
    found = []
    for shape in ((2, 37, 75), (1, 3, 40, 128), (1, 33, 1032)):
        x, y = draw(*shape), draw(*shape, seed=1)
        rows = tuple(draw(*shape[:-2], shape[-1], seed=i) for i in (2, 3, 4))
        label = "x".join(map(str, shape))
        narrow_branch = (False, True, True, True, True)
        for norm in ("layer", "rms"):
            modulate = partial(ops.adaln_modulate, norm=norm)
            gated = partial(ops.gated_residual_adaln, norm=norm)
            found += [
                Case("adaln_modulate", f"{norm} {label}", modulate, (x, *rows[1:])),
                Case("gated_residual_adaln", f"{norm} {label}", gated, (x, y, *rows)),
                Case("gated_residual_adaln", f"{norm} {label}, fp32 x", gated, (x, y, *rows), narrow_branch),
            ]
        found.append(Case("gated_residual", label, ops.gated_residual, (x, y, rows[0])))
    for batch, grid, heads, dim in ((2, (2, 3, 2), 3, 22), (1, (1, 5, 3), 2, 128)):
        length = grid[0] * grid[1] * grid[2]
        q, k, weight = (draw(batch, length, heads, dim, seed=i) for i in (0, 1, 2))
        weights = weight[0, 0, 0] + 1, weight[0, 1, 0] + 1
        half = dim // 2
        counts = half - 2 * (half // 3), half // 3, half // 3
        axes = tuple(draw(n, c, seed=3) for n, c in zip(grid, counts, strict=True))
        label = f"{batch}x{length}x{heads}x{dim}"
        for interleaved in (False, True):
            table = torch.cat([draw(length, half)] * 2, -1)
            if interleaved:
                table = draw(length, half).repeat_interleave(2, -1)
            word = "interleaved" if interleaved else "halves"
            tables: dict[str, Any] = {"cos": table.cos(), "sin": table.sin()}
            turned = partial(ops.qk_norm_rope, interleaved=interleaved)
            for kind, options in (("tables", tables), ("angles", {"angles": axes})):
                name = f"{word}, {kind} {label}"
                given = (q, k, *weights)
                found.append(Case("qk_norm_rope", name, turned, given, options=options, heads=True))
    for queries, keys, heads, dim in ((70, 41, 3, 24), (33, 130, 2, 128), (17, 19, 2, 64)):
        qkv = tuple(draw(2, n, heads, dim, seed=i) for i, n in enumerate((queries, keys, keys)))
        label = f"2x{queries}x{keys}x{heads}x{dim}"
        found.append(Case("attention", label, ops.attention, qkv, heads=True))
        with_lse = partial(ops.attention, return_lse=True)
        found.append(Case("attention_lse", label, with_lse, qkv, heads=True))
    for latent in ((2, 4, 3, 5, 7), (3, 2, 1, 8, 8)):
        x, label = draw(*latent), "x".join(map(str, latent))
        sigma = draw(latent[0]).abs() + 1
        noise, target = draw(*latent, seed=1), draw(*latent, seed=2)
        found += [
            Case("renoise", label, _renoise, (x,), options={"eps": noise, "sigma": sigma}),
            Case("vsd_loss", label, _vsd_loss, (x,), options={"teacher": noise, "fake": target}),
            Case("fake_score_loss", label, _fake_score_loss, (x,), options={"target": noise, "sigma": sigma}),
        ]
    return found


def _renoise(x: Tensor, *, eps: Tensor, sigma: Tensor, backend: str) -> Tensor:
    return ops.renoise(x, eps.to(x.dtype), sigma, backend=backend)


def _vsd_loss(x: Tensor, *, teacher: Tensor, fake: Tensor, backend: str) -> Tensor:
    return ops.vsd_loss(x, teacher.to(x.dtype), fake.to(x.dtype), backend=backend)


def _fake_score_loss(x: Tensor, *, target: Tensor, sigma: Tensor, backend: str) -> Tensor:
    return ops.fake_score_loss(x, target.to(x.dtype), sigma, backend=backend)
