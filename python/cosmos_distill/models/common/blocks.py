"""The blocks of the video DiT ("FA-CA-MLP" with AdaLN-LoRA); see :mod:`cosmos_distill.models.common.dit`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from cosmos_distill import ops
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.parallel.context import attention
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear, enter
from cosmos_distill.parallel.tokens import TokenSplit

EPS = 1e-6


def linear(in_features: int, out_features: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    """A small linear that every tensor-parallel rank holds whole."""
    return nn.Linear(in_features, out_features, bias=bias, dtype=dtype)


class Places(NamedTuple):
    """Where a rank's tokens stand in the clip."""

    grid: tuple[int, int, int]
    """Of the whole clip, (t, h, w)."""
    split: TokenSplit
    rotary: dict[str, Any]
    """How :func:`ops.qk_norm_rope` turns the tokens inside the tensor-parallel linears: by the ``angles`` of
    the axes on a rank that has the whole grid, by ``cos`` and ``sin`` of its own tokens on another."""
    learned: torch.Tensor | None
    """Added to the tokens at every block, [1, N, D]."""


class Modulation(nn.Module):
    """AdaLN-LoRA: W2(W1(SiLU(e))) + shared, [B, chunks * D] or [B, T, chunks * D], split into ``chunks``."""

    def __init__(self, config: DiTConfig, chunks: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear_1 = linear(config.width, config.adaln_rank, dtype)
        self.linear_2 = linear(config.adaln_rank, chunks * config.width, dtype)

    def forward(self, activated: torch.Tensor, shared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.linear_2(self.linear_1(activated))
        return (out + shared[..., : out.shape[-1]]).chunk(self.chunks, dim=-1)


class Attention(nn.Module):
    """Self-attention with rotary positions, or cross-attention to the text without.

    Queries and keys are RMS-normalised per head. Heads are split over the tensor-parallel group.
    """

    def __init__(self, config: DiTConfig, context_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q = ColumnLinear(config.width, config.width, dtype=dtype)
        self.k = ColumnLinear(context_dim, config.width, dtype=dtype)
        self.v = ColumnLinear(context_dim, config.width, dtype=dtype)
        self.q_norm = nn.Parameter(torch.empty(config.head_dim, dtype=dtype))
        self.k_norm = nn.Parameter(torch.empty(config.head_dim, dtype=dtype))
        self.out = RowLinear(config.width, config.width, dtype=dtype)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor | None = None, places: Places | None = None
    ) -> torch.Tensor:
        """To ``text`` [B, L, text_dim], or between the tokens, which stand in ``places``."""
        x = enter(x)
        context = x if text is None else text
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)) for y in (self.q(x), self.k(context), self.v(context))
        )
        if places is None:
            q, k = ops.qk_norm_rope(q, k, self.q_norm, self.k_norm, eps=EPS)
            out = ops.attention(q, k, v)
        else:
            q, k = ops.qk_norm_rope(q, k, self.q_norm, self.k_norm, eps=EPS, **places.rotary)
            out = attention(q, k, v, places.split)
        return self.out(out.flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = ColumnLinear(config.width, config.mlp_ratio * config.width, dtype=dtype)
        self.down = RowLinear(config.mlp_ratio * config.width, config.width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(enter(x))))


def split_frames(x: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
    """Tokens as the modulation of ``activated`` meets them: [B, N, D], or [B, T, N/T, D] if it has frames."""
    return x if activated.ndim == 2 else x.unflatten(1, (activated.shape[1], -1))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each in ``x + gate * f(LN(x) * (1 + scale) + shift)``."""

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(config, config.width, dtype)
        self.cross_attn = Attention(config, config.text_dim, dtype)
        self.mlp = MLP(config, dtype)
        self.modulations = nn.ModuleList(Modulation(config, 3, dtype) for _ in range(3))

    def forward(
        self,
        x: torch.Tensor,
        text: torch.Tensor,
        activated: torch.Tensor,
        shared: torch.Tensor,
        places: Places,
    ) -> torch.Tensor:
        (shift_s, scale_s, gate_s), (shift_c, scale_c, gate_c), (shift_m, scale_m, gate_m) = (
            modulation(activated, shared) for modulation in self.modulations
        )
        if places.learned is not None:
            x = x + places.learned
        x = split_frames(x, activated)
        h = ops.adaln_modulate(x, shift_s, scale_s, eps=EPS).flatten(1, -2)
        h = self.self_attn(h, places=places).reshape(x.shape)
        x, h = ops.gated_residual_adaln(x, h, gate_s, shift_c, scale_c, eps=EPS)
        h = self.cross_attn(h.flatten(1, -2), text).reshape(x.shape)
        x, h = ops.gated_residual_adaln(x, h, gate_c, shift_m, scale_m, eps=EPS)
        h = self.mlp(h.flatten(1, -2)).reshape(x.shape)
        return (x + gate_m.unsqueeze(-2) * h).flatten(1, -2)


class Blocks(nn.ModuleDict):
    """The blocks that this rank has, by their number in the whole network."""

    def __init__(self, numbers: Iterable[int], config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__({str(i): Block(config, dtype) for i in numbers})

    def __getitem__(self, number: int | str) -> nn.Module:
        return super().__getitem__(str(number))
