"""The video DiT of Transfer1 and Predict2.5 ("FA-CA-MLP" blocks with AdaLN-LoRA).

Shapes: latent [B, C, T, H, W]; tokens [B, N, D] with N = T * H/p * W/p in (t, h, w) order; text
[B, L, text_dim]; noise level [B], or [B, T] where the frames of a sample have their own. Cosmos-Transfer1
(arXiv 2503.14492), Cosmos world foundation models (arXiv 2501.03575).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn

from cosmos_distill import ops
from cosmos_distill.models.position import LearnablePositions, rotary_tables
from cosmos_distill.models.presets import NetworkConfig
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear

EPS = 1e-6
Recompute = Literal["none", "full", "selective"]


def linear(in_features: int, out_features: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    """A small linear that every tensor-parallel rank holds whole."""
    return nn.Linear(in_features, out_features, bias=bias, dtype=dtype)


class PatchEmbed(nn.Module):
    """Latent patches to tokens: [B, C, T, H, W] -> [B, N, D].

    Features inside a patch are ordered (channel, height, width) with the channel slowest.
    """

    def __init__(self, channels: int, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = linear(channels * self.patch**2, config.width, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, t, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, t, h // p, p, w // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return self.proj(x.reshape(b, t * (h // p) * (w // p), c * p * p))


class TimeEmbed(nn.Module):
    """c_noise [B] -> the normalised sinusoid e [B, D] and the shared AdaLN term [B, 3D]; [B, T] likewise.

    Cosine half first; the sinusoid itself, not the MLP's output, conditions the blocks.
    """

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = config.timestep_scale
        self.linear_1 = linear(config.width, config.width, dtype)
        self.linear_2 = linear(config.width, 3 * config.width, dtype)
        self.norm = nn.RMSNorm(config.width, eps=EPS, dtype=dtype)

    def forward(self, c_noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.linear_1.weight
        half = weight.shape[1] // 2
        compute = torch.promote_types(c_noise.dtype, torch.float32)
        index = torch.arange(half, device=c_noise.device, dtype=compute)
        angle = (self.scale * c_noise.to(compute))[..., None] * torch.exp(-math.log(10000.0) / half * index)
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=-1).to(weight.dtype)
        return self.norm(sinusoid), self.linear_2(F.silu(self.linear_1(sinusoid)))


class Modulation(nn.Module):
    """AdaLN-LoRA: W2(W1(SiLU(e))) + shared, [B, chunks * D] or [B, T, chunks * D], split into ``chunks``."""

    def __init__(self, config: NetworkConfig, chunks: int, dtype: torch.dtype) -> None:
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

    def __init__(self, config: NetworkConfig, context_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q = ColumnLinear(config.width, config.width, dtype=dtype)
        self.k = ColumnLinear(context_dim, config.width, dtype=dtype)
        self.v = ColumnLinear(context_dim, config.width, dtype=dtype)
        self.q_norm = nn.Parameter(torch.empty(config.head_dim, dtype=dtype))
        self.k_norm = nn.Parameter(torch.empty(config.head_dim, dtype=dtype))
        self.out = RowLinear(config.width, config.width, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)) for y in (self.q(x), self.k(context), self.v(context))
        )
        q, k = ops.qk_norm_rope(q, k, self.q_norm, self.k_norm, cos, sin, eps=EPS)
        return self.out(ops.attention(q, k, v).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = ColumnLinear(config.width, config.mlp_ratio * config.width, dtype=dtype)
        self.down = RowLinear(config.mlp_ratio * config.width, config.width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


class TextProjection(nn.Module):
    """Prompt embedding to the width that the blocks attend to: GELU(linear), trained with the teacher and
    frozen since. [B, L, text_projection] -> [B, L, text_dim]"""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.text_projection is not None
        self.proj = linear(config.text_projection, config.text_dim, dtype, bias=True)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(text))


def split_frames(x: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
    """Tokens as the modulation of ``activated`` meets them: [B, N, D], or [B, T, N/T, D] if it has frames."""
    return x if activated.ndim == 2 else x.unflatten(1, (activated.shape[1], -1))


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each in ``x + gate * f(LN(x) * (1 + scale) + shift)``."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(config, config.width, dtype)
        self.cross_attn = Attention(config, config.text_dim, dtype)
        self.mlp = MLP(config, dtype)
        self.modulations = nn.ModuleList(Modulation(config, 3, dtype) for _ in range(3))

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor | None,
        activated: torch.Tensor,
        shared: torch.Tensor,
        text: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        (shift_s, scale_s, gate_s), (shift_c, scale_c, gate_c), (shift_m, scale_m, gate_m) = (
            modulation(activated, shared) for modulation in self.modulations
        )
        if positions is not None:
            x = x + positions
        x = split_frames(x, activated)
        h = ops.adaln_modulate(x, shift_s, scale_s, eps=EPS).flatten(1, -2)
        h = self.self_attn(h, h, cos, sin).reshape(x.shape)
        x, h = ops.gated_residual_adaln(x, h, gate_s, shift_c, scale_c, eps=EPS)
        h = self.cross_attn(h.flatten(1, -2), text).reshape(x.shape)
        x, h = ops.gated_residual_adaln(x, h, gate_c, shift_m, scale_m, eps=EPS)
        h = self.mlp(h.flatten(1, -2)).reshape(x.shape)
        return (x + gate_m.unsqueeze(-2) * h).flatten(1, -2)


class FinalLayer(nn.Module):
    """Tokens to latent: [B, N, D] -> [B, C, T, H, W].

    The features of a token are ordered (height, width, channel) with the channel fastest: not the
    inverse of :class:`PatchEmbed`, and part of the published weights' meaning.
    """

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = config.patch
        self.modulation = Modulation(config, 2, dtype)
        self.linear = linear(config.width, config.patch**2 * config.latent_channels, dtype)

    def forward(
        self, x: torch.Tensor, activated: torch.Tensor, shared: torch.Tensor, grid: tuple[int, int, int]
    ) -> torch.Tensor:
        shift, scale = self.modulation(activated, shared)
        y = self.linear(ops.adaln_modulate(split_frames(x, activated), shift, scale, eps=EPS))
        t, h, w = grid
        p = self.patch
        y = y.reshape(-1, t, h, w, p, p, y.shape[-1] // p**2).permute(0, 6, 1, 2, 4, 3, 5)
        return y.reshape(y.shape[0], y.shape[1], t, h * p, w * p)


class Trunk(nn.Module):
    """What the base network and the control branch share: embeddings and a stack of blocks."""

    def __init__(
        self, config: NetworkConfig, *, blocks: int, channels: int, rope_ratio_t: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = config
        self.rope_ratio_t = rope_ratio_t
        self.activation_checkpointing: Recompute = "none"
        self.patch_embed = PatchEmbed(channels, config, dtype)
        self.time_embed = TimeEmbed(config, dtype)
        self.positions = LearnablePositions(config, dtype) if config.learnable_positions else None
        self.blocks = nn.ModuleList(Block(config, dtype) for _ in range(blocks))

    def grid(self, x: torch.Tensor) -> tuple[int, int, int]:
        """Token grid (t, h, w) of a latent, checked against the size of the position tables."""
        _, _, t, h, w = x.shape
        config, p = self.config, self.config.patch
        if h % p or w % p:
            raise ValueError(f"latent of {h} x {w} is not a multiple of the patch size {p}")
        if t > config.max_frames or h > config.max_height or w > config.max_width:
            raise ValueError(
                f"latent grid {t} x {h} x {w} exceeds the network's largest, "
                f"{config.max_frames} x {config.max_height} x {config.max_width}"
            )
        return t, h // p, w // p

    def run_block(self, index: int, *args: torch.Tensor | None) -> torch.Tensor:
        """Block ``index``; under activation checkpointing its inside is recomputed in the backward pass."""
        if self.activation_checkpointing == "none" or not torch.is_grad_enabled():
            return self.blocks[index](*args)
        keep = ops.keep_attention if self.activation_checkpointing == "selective" else noop_context_fn
        return checkpoint(self.blocks[index], *args, use_reentrant=False, context_fn=keep)

    def embed(
        self, x: torch.Tensor, c_noise: torch.Tensor, fps: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...], tuple[torch.Tensor, torch.Tensor]]:
        """Tokens, (positions, activated time, shared time term), rotary (cos, sin)."""
        grid = self.grid(x)
        if tuple(c_noise.shape) not in ((x.shape[0],), (x.shape[0], grid[0])):
            raise ValueError(
                f"c_noise must be [{x.shape[0]}] or [{x.shape[0]}, {grid[0]}] for x of shape "
                f"{list(x.shape)}, not {list(c_noise.shape)}"
            )
        e, shared = self.time_embed(c_noise)
        rotary = rotary_tables(
            grid,
            self.config.head_dim,
            self.rope_ratio_t,
            fps if self.config.fps_modulation else None,
            x.device,
            self.config.rope_ratio_hw,
        )
        positions = None if self.positions is None else self.positions(grid)
        return self.patch_embed(x), (positions, F.silu(e), shared), rotary


class VideoDiT(Trunk):
    """The base network: a denoiser on its own, steered by residuals of a control branch."""

    def __init__(self, config: NetworkConfig, *, dtype: torch.dtype) -> None:
        super().__init__(
            config,
            blocks=config.blocks,
            channels=config.latent_channels + 2,  # + condition mask + padding mask
            rope_ratio_t=config.rope_ratio_t,
            dtype=dtype,
        )
        self.final_layer = FinalLayer(config, dtype)
        self.text_projection = TextProjection(config, dtype) if config.text_projection else None

    def forward(
        self,
        x: torch.Tensor,
        c_noise: torch.Tensor,
        text: torch.Tensor,
        *,
        fps: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] = (),
        features: Sequence[int] = (),
        features_only: bool = False,
    ) -> tuple[torch.Tensor | None, dict[int, torch.Tensor]]:
        """x [B, C+2, T, H, W] -> output [B, C, T, H, W] and features {block: [B, T, h, w, D]}.

        ``residuals[i]`` [B, N, D] is added after block i, the feature of block i is taken before that.
        ``features_only`` stops after the last feature and returns None as output.
        """
        if any(not 0 <= i < len(self.blocks) for i in features):
            raise ValueError(f"features {tuple(features)}: blocks are numbered 0..{len(self.blocks) - 1}")
        grid = self.grid(x)
        h, (positions, activated, shared), (cos, sin) = self.embed(x, c_noise, fps)
        if self.text_projection is not None:
            text = self.text_projection(text)
        found: dict[int, torch.Tensor] = {}
        last = max(features) if features_only else len(self.blocks) - 1
        for i in range(last + 1):
            h = self.run_block(i, h, positions, activated, shared, text, cos, sin)
            if i in features:
                found[i] = h.unflatten(1, grid)
            if i < len(residuals):
                h = h + residuals[i]
        return (None if features_only else self.final_layer(h, activated, shared, grid)), found
