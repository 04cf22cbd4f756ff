"""Discriminator heads on features of a network's blocks: of the frozen teacher in Transfer1's DMD2, of the
fake score network in Predict2.5's.

Features are [B, T, H', W', D]. The convolutional heads and ``attention`` judge each block by itself, with one
logit per sample and block; ``query_token`` judges all of them together, with one logit per sample. Every
normalisation is per sample, so that a logit depends neither on the micro-batch nor on the parallel layout.
The official ``attention`` head has BatchNorm, which is the same where a rank has one sample, as it has there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Norm(nn.GroupNorm):
    """Over each sample's groups of channels; refuses groups of one value, of which nothing would be left."""

    def forward(self, x: Tensor) -> Tensor:
        if x[0].numel() == self.num_groups:
            raise ValueError(
                f"features too small for this head: {self.num_groups} groups of its {self.num_channels} "
                "channels have one value each, and normalised it is zero: choose fewer head_groups (the "
                "attention head has its own, one per channel, and needs larger features), or another head"
            )
        return super().forward(x)


def _norm_act(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(_Norm(groups, width), nn.LeakyReLU())


class Conv3dHead(nn.Sequential):
    """Convolution over space and time (the default), [B, D, T, H, W] -> [B]."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__(
            nn.Conv3d(channels, width, (2, 4, 4), stride=2, padding=(0, 1, 1)),
            _norm_act(width, groups),
            nn.Conv3d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1).mean(1)


class Conv2dHead(nn.Sequential):
    """Convolution inside each frame, averaged over frames, [B, D, T, H, W] -> [B]."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            _norm_act(width, groups),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        frames = x.movedim(2, 1).flatten(0, 1)
        return super().forward(frames).reshape(x.shape[0], -1).mean(1)


class TemporalHead(nn.Sequential):
    """Convolution along the frames of each position, averaged over positions, [B, D, T, H, W] -> [B]."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__(
            nn.Conv1d(channels, width, 4, stride=2, padding=1),
            _norm_act(width, groups),
            nn.Conv1d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        positions = x.permute(0, 3, 4, 1, 2).flatten(0, 2)
        return super().forward(positions).reshape(x.shape[0], -1).mean(1)


class SpatialTemporalHead(nn.Module):
    """Mean of a spatial and a temporal head (SF-V, arXiv 2406.04324), [B, D, T, H, W] -> [B]."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.spatial = Conv2dHead(channels, width, groups)
        self.temporal = TemporalHead(channels, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.spatial(x) + self.temporal(x))


class AttentionHead(nn.Module):
    """Self-attention over all downsampled tokens between two convolutions, [B, D, T, H, W] -> [B]. What it
    attends to is normalised, and nothing passes around it."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv3d(channels, width, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1)),
            _norm_act(width, groups),
        )
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.out = nn.Sequential(
            nn.Conv3d(width, width, 2, stride=2, padding=(1, 0, 0)),
            _norm_act(width, groups),
            nn.Conv3d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        tokens = self.norm(h.flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.out(mixed.transpose(1, 2).reshape(h.shape)).flatten(1).mean(1)


class QueryTokenBranch(nn.Module):
    """What one learned query gathers from all tokens of a block, [B, D, T, H, W] -> [B, D] (adversarial
    post-training, arXiv 2501.08316, as Predict2.5 has it): one attention head of width D with normalised
    queries and keys, then an MLP, both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, channels))
        self.norm = nn.RMSNorm(channels, eps=QUERY_EPS)
        self.q, self.k, self.v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = (nn.RMSNorm(channels, eps=QUERY_EPS) for _ in range(2))
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.RMSNorm(channels, eps=QUERY_EPS),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        query = self.query.expand(x.shape[0], 1, -1)
        gathered = F.scaled_dot_product_attention(
            self.q_norm(self.q(query)), self.k_norm(self.k(tokens)), self.v(tokens)
        )
        h = (query + self.out(gathered)).squeeze(1)
        return h + self.mlp(h)


class JointLogit(nn.Sequential):
    """The branches of several blocks side by side, [B, blocks * D] -> [B, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 1))
        _xavier(self)


def _xavier(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


QUERY_EPS = 1e-5
"""Of the query-token head's normalisations."""

HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "conv3d": Conv3dHead,
    "conv2d": Conv2dHead,
    "attention": AttentionHead,
    "spatial_temporal": SpatialTemporalHead,
    "query_token": lambda channels, width, groups: QueryTokenBranch(channels),
}
SMALLEST = {
    "conv3d": (2, 2, 2),
    "conv2d": (1, 2, 2),
    "attention": (1, 4, 4),
    "spatial_temporal": (2, 2, 2),
    "query_token": (1, 1, 1),
}
"""Smallest feature grid (T, H', W') that a head's kernels fit."""


class Discriminator(nn.Module):
    """One head per feature block, or one over all of them.

    Args:
        blocks: base blocks whose features are judged.
        channels: their width D.
        head: ``conv3d``, ``conv2d``, ``attention``, ``spatial_temporal`` or ``query_token``.
        width: hidden channels of a head; ``query_token`` has those of the features.
        groups: of its GroupNorm, a divisor of ``width``; None: 8, and ``width`` for ``attention``, which is
            the BatchNorm of the official head over one sample. ``query_token`` has none.
        t_min: leading latent frames that are not judged.
        seed: decides the initial weights, whatever the state of the global generator.

    Raises:
        ValueError: unknown head, or ``width`` not a multiple of ``groups`` (and of 4 for ``attention``).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: int,
        *,
        head: str = "conv3d",
        width: int = 320,
        groups: int | None = None,
        t_min: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown discriminator head {head!r}: choose one of {', '.join(HEADS)}")
        if groups is None:
            groups = width if head == "attention" else 8
        if head == "attention" and width % 4:
            raise ValueError(f"head width {width} must be a multiple of 4, the heads of its attention")
        if head != "query_token" and width % groups:
            raise ValueError(f"head width {width} must be a multiple of {groups}, its head_groups")
        self.head, self.t_min = head, t_min
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({str(b): HEADS[head](channels, width, groups) for b in sorted(blocks)})
            self.joint = JointLogit(len(self.heads) * channels) if head == "query_token" else None

    @property
    def blocks(self) -> tuple[int, ...]:
        """Feature blocks that :meth:`forward` needs."""
        return tuple(int(name) for name in self.heads)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Logits, positive for real, at least fp32: [B, blocks], or [B, 1] of a head over all blocks.

        Args:
            features: block -> [B, T, H', W', D]; cast to the head's dtype.

        Raises:
            ValueError: the feature grid is too small for this kind of head.
        """
        dtype = next(self.parameters()).dtype
        outputs = []
        for name, head in self.heads.items():
            x = features[int(name)][:, self.t_min :].movedim(-1, 1).to(dtype)
            grid, least = tuple(x.shape[2:]), SMALLEST[self.head]
            if any(size < limit for size, limit in zip(grid, least, strict=True)):
                raise ValueError(
                    f"features of {grid} (T, H', W') after dropping {self.t_min} frames are too small for a "
                    f"{self.head!r} head, which needs {least}: choose another head or a smaller feature_t_min"
                )
            outputs.append(head(x))
        logits = torch.stack(outputs, 1) if self.joint is None else self.joint(torch.cat(outputs, 1))
        return logits.to(torch.promote_types(dtype, torch.float32))
