"""A small video tokenizer: principal components of 4 x 4 x 4 blocks, and a learned residual.

The first frame is coded alone, further frames in groups of four; a group sees itself and the group before it,
so encoder and decoder are causal. What the components keep is exact linear algebra; two small convolutional
networks, whose last layers start at zero, add what a linear code of single blocks misses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_distill.models.mini_tokenizer.config import COLOURS, GROUP, NORM_GROUPS, SIDE, AutoencoderConfig

FIRST, LATER = COLOURS * SIDE * SIDE, COLOURS * GROUP * SIDE * SIDE
"""Numbers in a block of the first frame and of a group."""


def blocks(video: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, 1 + 4 n, H, W] -> the first frame's blocks [B, 1, 48, h, w] and the groups' [B, n, 192, h,
    w]."""
    return _blocks(video[:, :, :1], 1), _blocks(video[:, :, 1:], GROUP)


def _blocks(video: Tensor, group: int) -> Tensor:
    b, c, f, h, w = video.shape
    x = video.reshape(b, c, f // group, group, h // SIDE, SIDE, w // SIDE, SIDE)
    return x.permute(0, 2, 1, 3, 5, 7, 4, 6).flatten(2, 5)


def unblocks(first: Tensor, later: Tensor) -> Tensor:
    """The inverse of :func:`blocks`."""
    return torch.cat([_unblocks(first, 1), _unblocks(later, GROUP)], dim=2)


def _unblocks(x: Tensor, group: int) -> Tensor:
    b, n, _, h, w = x.shape
    x = x.reshape(b, n, COLOURS, group, SIDE, SIDE, h, w).permute(0, 2, 1, 3, 6, 4, 7, 5)
    return x.reshape(b, COLOURS, n * group, h * SIDE, w * SIDE)


class Frames(nn.Conv2d):
    """A convolution in each of [B, T, C, h, w]."""

    def __init__(self, channels: int, out: int, side: int = 3) -> None:
        super().__init__(channels, out, side, padding=side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Residual(nn.Module):
    """Two convolutions in each group of frames, with a look at the group before; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.GroupNorm(NORM_GROUPS, channels) for _ in range(2))
        self.conv_1, self.conv_2 = Frames(channels, channels), Frames(channels, channels)
        self.past = Frames(channels, channels, side=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(_each(self.norm_1, x))
        # The group before: shifted by one, nothing before the first.
        before = F.pad(self.past(y[:, :-1]), (0, 0, 0, 0, 0, 0, 1, 0))
        return x + self.conv_2(F.silu(_each(self.norm_2, self.conv_1(y) + before)))


def _each(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layer(x.flatten(0, 1))
    return out.unflatten(0, x.shape[:2])


class Autoencoder(nn.Module):
    """Video within [-1, 1] to latents of about unit scale, and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, inner, outer = config.channels, config.encoder_width, config.decoder_width
        self.components = nn.ModuleDict(
            {
                "encode_first": Frames(FIRST, channels, side=1),
                "encode_later": Frames(LATER, channels, side=1),
                "decode_first": Frames(channels, FIRST, side=1),
                "decode_later": Frames(channels, LATER, side=1),
            }
        )
        self.encoder = nn.ModuleDict(
            {
                "first": Frames(FIRST, inner),
                "later": Frames(LATER, inner),
                "block": Residual(inner),
                "out": Frames(inner, channels, side=1),
            }
        )
        self.decoder = nn.ModuleDict(
            {
                "start": Frames(channels, outer),
                "blocks": nn.Sequential(*(Residual(outer) for _ in range(config.decoder_blocks))),
                "first": Frames(outer, FIRST),
                "later": Frames(outer, LATER),
            }
        )

    def initialize(self, seed: int, video: Tensor) -> None:
        """Start as the principal components of ``video`` [N, 3, F, H, W] within [-1, 1].

        The networks' weights are drawn from ``seed``; the layers that they end with are zero.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.GroupNorm):
                    module.reset_parameters()
            ends: list[nn.Module] = [self.encoder["out"], self.decoder["first"], self.decoder["later"]]
            ends += [module.conv_2 for module in self.modules() if isinstance(module, Residual)]
            for end in ends:
                for parameter in end.parameters():
                    parameter.zero_()
            for name, found in zip(("first", "later"), blocks(video), strict=True):
                self._set_components(name, found.movedim(2, -1).flatten(0, -2))

    def _set_components(self, name: str, found: Tensor) -> None:
        """Leading components of blocks [N, D]. A channel keeps the square root of its deviation (whitening
        fully amplifies fine detail until samples stay noise); together they have a mean variance of one."""
        x = found.double()
        mean = x.mean(0)
        power, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        kept = self.config.channels
        power, axes = power[-kept:].flip(0).clamp_min(1e-12), axes[:, -kept:].flip(1)
        gain = power**-0.25 / power.sqrt().mean().sqrt()
        encode, decode = self.components[f"encode_{name}"], self.components[f"decode_{name}"]
        encode.weight.copy_((axes * gain).T[:, :, None, None])  # type: ignore[operator]
        encode.bias.copy_(-(axes * gain).T @ mean)  # type: ignore[operator]
        decode.weight.copy_((axes / gain)[:, :, None, None])  # type: ignore[operator]
        decode.bias.copy_(mean)  # type: ignore[operator]

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply all latents by ``factor``, and divide them again before they are decoded: training leaves
        their scale free, networks that learn to draw them want it to be one."""
        for end in (self.components["encode_first"], self.components["encode_later"], self.encoder["out"]):
            for parameter in end.parameters():
                parameter.mul_(factor)
        for start in (
            self.components["decode_first"],
            self.components["decode_later"],
            self.decoder["start"],
        ):
            start.weight.div_(factor)  # type: ignore[operator]

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 1 + 4 n, H, W] -> [B, C, 1 + n, H / 4, W / 4]."""
        first, later = blocks(video)
        linear = [self.components["encode_first"](first), self.components["encode_later"](later)]
        y = torch.cat([self.encoder["first"](first), self.encoder["later"](later)], dim=1)
        rest = self.encoder["out"](F.silu(self.encoder["block"](y)))
        return (torch.cat(linear, dim=1) + rest).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, 1 + n, h, w] -> [B, 3, 1 + 4 n, 4 h, 4 w], about within [-1, 1]."""
        z = latents.transpose(1, 2)
        y = F.silu(self.decoder["blocks"](self.decoder["start"](z)))
        parts = {"first": slice(0, 1), "later": slice(1, None)}
        first, later = (
            self.components[f"decode_{name}"](z[:, part]) + self.decoder[name](y[:, part])
            for name, part in parts.items()
        )
        return unblocks(first, later)
