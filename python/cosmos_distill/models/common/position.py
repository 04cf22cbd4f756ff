"""Positions of tokens on the (t, h, w) grid: 3-D rotary tables and learnable axis tables."""

from __future__ import annotations

import math

import torch
from torch import nn

from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.parallel.tokens import TokenSplit

BASE_FPS = 24.0
THETA = 10000.0

Angles = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _angles(positions: torch.Tensor, dim: int, ratio: float) -> torch.Tensor:
    """positions [..., n] -> angles [..., n, dim/2]; ``ratio`` is the NTK extrapolation of the axis."""
    theta = THETA * ratio ** (dim / (dim - 2))
    exponent = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    return positions[..., None] * theta**-exponent


def rotary_angles(
    grid: tuple[int, int, int],
    head_dim: int,
    ratio_t: float,
    fps: torch.Tensor | None,
    device: torch.device,
    ratio_hw: float = 1.0,
) -> Angles:
    """Radians of the axes, t [T, a], or [B, T, a] when ``fps`` [B] stretches time by 24 / fps, h [H, b] and
    w [W, b], as :func:`cosmos_distill.ops.qk_norm_rope` takes them.

    fp32. A head splits into t, h, w parts (2a, 2b, 2b = 44, 42, 42 of 128; 4, 4, 4 of 12, the smallest, since
    the extrapolation needs more than two of each).
    """
    dim_hw = head_dim // 6 * 2
    t, h, w = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    if fps is not None:
        t = t * (BASE_FPS / fps.float())[:, None]
    return (
        _angles(t, head_dim - 2 * dim_hw, ratio_t),
        _angles(h, dim_hw, ratio_hw),
        _angles(w, dim_hw, ratio_hw),
    )


def rotary_tables(angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every token of the grid, [N, head_dim] or [B, N, head_dim]: the half vector (t, h, w)
    stands twice for the rotate-half layout."""
    t, h, w = angles
    shape = (*t.shape[:-1], h.shape[0], w.shape[0])
    axes = (t[..., :, None, None, :], h[:, None, :], w[None, :, :])
    half = torch.cat([axis.expand(*shape, axis.shape[-1]) for axis in axes], dim=-1)
    angle = torch.cat([half, half], dim=-1).flatten(-4, -2)
    return angle.cos(), angle.sin()


class LearnablePositions(nn.Module):
    """Sum of three axis tables scaled to unit RMS per token; added to this rank's tokens at every block.
    [1, N, D]"""

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        p, width = config.patch, config.width
        self.t = nn.Parameter(torch.empty(config.max_frames, width, dtype=dtype))
        self.h = nn.Parameter(torch.empty(config.max_height // p, width, dtype=dtype))
        self.w = nn.Parameter(torch.empty(config.max_width // p, width, dtype=dtype))

    def forward(self, grid: tuple[int, int, int], split: TokenSplit) -> torch.Tensor:
        t, h, w = grid
        area = (self.h[:h, None] + self.w[None, :w]).flatten(0, 1)
        total = self.t[:t, None] + split.local_area(area)
        wide = total.to(torch.promote_types(total.dtype, torch.float32))
        rms = wide.norm(dim=-1, keepdim=True) / math.sqrt(wide.shape[-1])
        return (wide / (rms + 1e-6)).to(total.dtype).flatten(0, 1)[None]
