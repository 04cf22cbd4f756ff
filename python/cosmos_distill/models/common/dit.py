"""The video DiT of all families ("FA-CA-MLP" blocks with AdaLN-LoRA).

Shapes: latent [B, C, T, H, W], whole on every rank; tokens [B, N, D], N of the T * H/p * W/p in (t, h, w)
order on this rank, all of them in most layouts; text [B, L, text_dim]; noise level [B], or [B, T] where the
frames of a sample have their own. Cosmos-Transfer1 (arXiv 2503.14492), Cosmos world foundation models (arXiv
2501.03575).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn

from cosmos_distill import ops
from cosmos_distill.models.common.blocks import EPS, Blocks, Modulation, Places, linear, split_frames
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.common.frozen import FrozenLinear
from cosmos_distill.models.common.position import LearnablePositions, rotary_angles, rotary_tables
from cosmos_distill.parallel.tokens import TokenSplit

Recompute = Literal["none", "full", "selective"]


class PatchEmbed(nn.Module):
    """Latent patches to this rank's tokens: [B, C, T, H, W] -> [B, N, D].

    Features inside a patch are ordered (channel, height, width) with the channel slowest.
    """

    def __init__(self, channels: int, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = linear(channels * self.patch**2, config.width, dtype)

    def forward(self, x: torch.Tensor, split: TokenSplit) -> torch.Tensor:
        b, c, t, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, t, h // p, p, w // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return self.proj(split.take(x.reshape(b, t * (h // p) * (w // p), c * p * p)))


class TimeEmbed(nn.Module):
    """c_noise [B] -> the normalised sinusoid e [B, D] and the shared AdaLN term [B, 3D]; [B, T] likewise.

    Cosine half first; the sinusoid itself, not the MLP's output, conditions the blocks.
    """

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
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


class TextProjection(nn.Module):
    """Prompt embedding to the width that the blocks attend to: GELU(linear), trained with the teacher and
    frozen since, in all roles. [B, L, text_projection] -> [B, L, text_dim]"""

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.text_projection is not None
        self.proj = FrozenLinear(config.text_projection, config.text_dim, dtype=dtype)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(text))


class FinalLayer(nn.Module):
    """This rank's tokens to the whole latent: [B, N, D] -> [B, C, T, H, W].

    The features of a token are ordered (height, width, channel) with the channel fastest: not the
    inverse of :class:`PatchEmbed`, and part of the published weights' meaning.
    """

    def __init__(self, config: DiTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = config.patch
        self.modulation = Modulation(config, 2, dtype)
        self.linear = linear(config.width, config.patch**2 * config.latent_channels, dtype)

    def forward(
        self, x: torch.Tensor, activated: torch.Tensor, shared: torch.Tensor, places: Places
    ) -> torch.Tensor:
        shift, scale = self.modulation(activated, shared)
        y = self.linear(ops.adaln_modulate(split_frames(x, activated), shift, scale, eps=EPS))
        y = places.split.gather(y.reshape(*x.shape[:2], -1))
        t, h, w = places.grid
        p = self.patch
        y = y.reshape(-1, t, h, w, p, p, y.shape[-1] // p**2).permute(0, 6, 1, 2, 4, 3, 5)
        return y.reshape(y.shape[0], y.shape[1], t, h * p, w * p)


class Context(NamedTuple):
    """What every block is given beside the tokens."""

    text: torch.Tensor
    """[B, L, text_dim]"""
    activated: torch.Tensor
    """Of the noise level, [B, D] or [B, T, D]."""
    shared: torch.Tensor
    """The AdaLN term that all blocks have in common, [B, 3D] or [B, T, 3D]."""
    places: Places


class Steering(Protocol):
    """What a control branch does to the tokens of the base while its blocks run."""

    def start(self, h: torch.Tensor, context: Context) -> None:
        """Called with the embedded latent, this rank's tokens [B, N, D], where the first run begins."""

    def after(self, block: int, h: torch.Tensor, context: Context) -> torch.Tensor:
        """The tokens after ``block``, [B, N, D], steered."""


class Residuals:
    """Steering by one residual for each of the first blocks, [B, N, D] each."""

    def __init__(self, residuals: Sequence[torch.Tensor]) -> None:
        self.residuals = residuals

    def start(self, h: torch.Tensor, context: Context) -> None:
        """Nothing to do: the residuals are known."""

    def after(self, block: int, h: torch.Tensor, context: Context) -> torch.Tensor:
        """Add the block's residual, where it has one."""
        return h + self.residuals[block] if block < len(self.residuals) else h


class Stack(nn.Module):
    """Blocks by their number in the whole network, those that this rank has."""

    def __init__(self, config: DiTConfig, blocks: Iterable[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Recompute = "none"
        self.blocks = Blocks(blocks, config, dtype)

    def run_block(self, index: int, h: torch.Tensor, context: Context) -> torch.Tensor:
        """Block ``index``; under activation checkpointing its inside is recomputed in the backward pass."""
        if self.activation_checkpointing == "none" or not torch.is_grad_enabled():
            return self.blocks[index](h, *context)
        keep = ops.keep_attention if self.activation_checkpointing == "selective" else noop_context_fn
        return checkpoint(self.blocks[index], h, *context, use_reentrant=False, context_fn=keep)


class Trunk(Stack):
    """What the base network and Transfer1's control branch share: embeddings and a stack of blocks.

    Args:
        blocks: numbers of the blocks that this rank has.
        first: whether it has the first block, hence embeds the latent.
        channels: of the latent with its masks.
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        blocks: Iterable[int],
        first: bool,
        channels: int,
        rope_ratio_t: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, blocks, dtype)
        self.rope_ratio_t = rope_ratio_t
        self.patch_embed = PatchEmbed(channels, config, dtype) if first else None
        self.time_embed = TimeEmbed(config, dtype)
        self.positions = LearnablePositions(config, dtype) if config.learnable_positions else None

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

    def times(self, c_noise: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What modulates every block: the activated embedding of the noise level, and the shared term."""
        b, _, t, _, _ = x.shape
        if tuple(c_noise.shape) not in ((b,), (b, t)):
            raise ValueError(
                f"c_noise must be [{b}] or [{b}, {t}] for x of shape {list(x.shape)}, "
                f"not {list(c_noise.shape)}"
            )
        e, shared = self.time_embed(c_noise)
        return F.silu(e), shared

    def places(self, x: torch.Tensor, fps: torch.Tensor | None) -> Places:
        """Where this rank's tokens of the latent ``x`` stand."""
        grid = self.grid(x)
        split = TokenSplit(grid)
        angles = rotary_angles(
            grid,
            self.config.head_dim,
            self.rope_ratio_t,
            fps if self.config.fps_modulation else None,
            x.device,
            self.config.rope_ratio_hw,
        )
        rotary: dict[str, Any] = {"angles": angles}
        if split.parts > 1:
            cos, sin = (split.local_inside(table) for table in rotary_tables(angles))
            rotary = {"cos": cos, "sin": sin}
        learned = None if self.positions is None else self.positions(grid, split)
        return Places(grid, split, rotary, learned)


class VideoDiT(Trunk):
    """The base network, or a pipeline rank's blocks of it: a denoiser on its own, or steered by a control
    branch."""

    def __init__(self, config: DiTConfig, runs: Sequence[range], *, dtype: torch.dtype) -> None:
        numbers = [i for run in runs for i in run]
        super().__init__(
            config,
            blocks=numbers,
            first=0 in numbers,
            channels=config.latent_channels + 2,  # + condition mask + padding mask
            rope_ratio_t=config.rope_ratio_t,
            dtype=dtype,
        )
        self.final_layer = FinalLayer(config, dtype) if config.blocks - 1 in numbers else None
        self.text_projection = TextProjection(config, dtype) if config.text_projection else None

    def forward(
        self,
        x: torch.Tensor,
        c_noise: torch.Tensor,
        text: torch.Tensor,
        *,
        fps: torch.Tensor | None = None,
        steering: Steering | None = None,
        features: Sequence[int] = (),
        features_only: bool = False,
        run: range | None = None,
        h: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The blocks of ``run``: from the latent (``h`` None) or from what the run before returned, to what
        the next one takes or, of the last run, to the output [B, C, T, H, W].

        Args:
            x: latent with masks, [B, C+2, T, H, W]; later runs need its shape only.
            text: prompt embedding, [B, L, text_channels], or what the text projection makes of it, [B, L,
                text_dim], where that is of another width.
            steering: what the control branch does after each block.
            features: blocks whose output is wanted, taken before they are steered.
            features_only: stop after the last of them; the tokens are then returned as they are.
            run: consecutive blocks; None: all.
            h: this rank's tokens, [B, N, D].

        Returns:
            Tokens or output, and the features of this run, whole: {block: [B, T, h, w, D]}.
        """
        run = range(self.config.blocks) if run is None else run
        activated, shared = self.times(c_noise, x)
        places = self.places(x, fps)
        if self.text_projection is not None and text.shape[-1] == self.config.text_channels:
            text = self.text_projection(text)  # else it was, before it was stored
        context = Context(text, activated, shared, places)
        if h is None:
            assert self.patch_embed is not None
            h = self.patch_embed(x, places.split)
            if steering is not None:
                steering.start(h, context)
        found: dict[int, torch.Tensor] = {}
        last = max(features) if features_only else self.config.blocks - 1
        for i in run[: max(0, last + 1 - run.start)]:
            h = self.run_block(i, h, context)
            if i in features:
                found[i] = places.split.gather(h).unflatten(1, places.grid)
            if steering is not None:
                h = steering.after(i, h, context)
        if features_only or run.stop < self.config.blocks:
            return h, found
        assert self.final_layer is not None
        return self.final_layer(h, activated, shared, places), found
