"""Wan 2.1's VAE in tiles, for frames that do not fit in memory, with the result of whole frames.

A convolution sees a bounded neighbourhood: in the middle of a tile with a margin as wide as all of them reach
together, every layer computes what it would of the whole frame. The one layer that looks at all of a frame,
the attention in the middle of encoder and decoder, works at an eighth of the size, and is given whole frames.
Nothing is blended; only the order in which sums are rounded may differ. In time the VAE goes four frames
after four frames anyhow, and keeps what its causal convolutions have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

SPACE, TIME = 8, 4
_KEPT = 2
"""Frames that a causal convolution has seen and needs again."""
Cache = list[Any]
Window = tuple[slice, slice]
"""Rows and columns."""


def encode(
    vae: Any, frames: Callable[[slice, Window], Tensor], size: tuple[int, int, int], side: int
) -> Tensor:
    """Means of the latents, [1, C, T, h, w], of a clip in tiles of ``side`` pixels.

    Args:
        vae: diffusers' AutoencoderKLWan.
        frames: (frames, window) -> that part of the clip as the VAE takes it, [1, 3, F, H, W].
        size: Frames, height and width of the clip.
        side: A multiple of 8.

    Raises:
        ValueError: the VAE has attention before its middle, which no tile can compute.
    """
    encoder = vae.encoder
    margin = encoder_margin(vae)
    count, height, width = size
    parts: dict[tuple[int, int], Tensor] = {}
    for inner, outer in _tiles(height // SPACE, width // SPACE, side // SPACE, margin):
        cache: Cache = [None] * _causal_count(encoder)
        pixels = tuple(slice(SPACE * s.start, SPACE * s.stop) for s in outer)
        found = []
        for chunk in _chunks(count):
            index = [0]
            x = _causal(encoder.conv_in, frames(chunk, (pixels[0], pixels[1])), cache, index)
            for layer in encoder.down_blocks:
                x = layer(x, feat_cache=cache, feat_idx=index)
            found.append(_cropped(x, inner, outer, 1))
        parts[inner[0].start, inner[1].start] = torch.cat(found, dim=2)
    whole = _joined(parts)
    cache, found = [None] * _causal_count(encoder), []
    for frame in whole.split(1, dim=2):
        index = [0]
        x = encoder.mid_block(frame, feat_cache=cache, feat_idx=index)
        found.append(_causal(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(x)), cache, index))
    return vae.quant_conv(torch.cat(found, dim=2)).chunk(2, dim=1)[0]


def decode(vae: Any, z: Tensor, side: int, show: Callable[[Tensor], Tensor]) -> Tensor:
    """The clip of latents ``z`` [1, C, T, h, w] in tiles of ``side`` pixels.

    Args:
        vae: diffusers' AutoencoderKLWan.
        z: In the VAE's own scale.
        side: A multiple of 8.
        show: What becomes of frames of a tile, within -1..1, before tiles are joined.

    Raises:
        ValueError: as :func:`encode` does.
    """
    decoder = vae.decoder
    margin = decoder_margin(vae)
    cache, found = [None] * _causal_count(decoder), []
    for frame in vae.post_quant_conv(z).split(1, dim=2):
        index = [0]
        x = _causal(decoder.conv_in, frame, cache, index)
        found.append(decoder.mid_block(x, feat_cache=cache, feat_idx=index))
    whole = torch.cat(found, dim=2)
    parts: dict[tuple[int, int], Tensor] = {}
    for inner, outer in _tiles(whole.shape[3], whole.shape[4], side // SPACE, margin):
        cache, found = [None] * _causal_count(decoder), []
        for number, frame in enumerate(whole[..., outer[0], outer[1]].split(1, dim=2)):
            x, index = frame, [0]
            for block in decoder.up_blocks:
                x = block(x, feat_cache=cache, feat_idx=index, first_chunk=number == 0)
            x = _causal(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), cache, index)
            found.append(show(_cropped(x, inner, outer, SPACE).clamp(-1.0, 1.0)))
        parts[inner[0].start, inner[1].start] = torch.cat(found, dim=2)
    return _joined(parts)


def encoder_margin(vae: Any) -> int:
    """Latents that a tile needs around it, so that no layer before the middle sees its edge.

    Raises:
        ValueError: a layer looks at whole frames.
    """
    reach, scale = 1, 1  # conv_in
    for layer in vae.encoder.down_blocks:
        kind = type(layer).__name__
        if kind == "WanResidualBlock":
            reach += 2 * scale
        elif kind == "WanResample":
            reach, scale = reach + scale, 2 * scale
        else:
            raise ValueError(f"a VAE with {kind} cannot work in tiles: its layers look at whole frames")
    return math.ceil(reach / scale)


def decoder_margin(vae: Any) -> int:
    """The same behind the middle."""
    reach, scale = 0.0, 1
    for block in vae.decoder.up_blocks:
        if (kind := type(block).__name__) != "WanUpBlock":
            raise ValueError(f"a VAE with {kind} cannot work in tiles: its layers look at whole frames")
        reach += 2 * len(block.resnets) / scale
        if block.upsamplers is not None:
            scale *= 2
            reach += 1 / scale
    return math.ceil(reach + 1 / scale)  # conv_out


def _chunks(count: int) -> Iterator[slice]:
    """The first frame alone, then four by four."""
    yield slice(0, 1)
    for first in range(1, count, TIME):
        yield slice(first, first + TIME)


def _tiles(height: int, width: int, side: int, margin: int) -> Iterator[tuple[Window, Window]]:
    """Windows that cover a grid, without and with their margin."""

    def along(size: int) -> list[tuple[slice, slice]]:
        starts = range(0, size, side)
        return [
            (slice(a, min(size, a + side)), slice(max(0, a - margin), min(size, a + side + margin)))
            for a in starts
        ]

    for rows in along(height):
        for columns in along(width):
            yield (rows[0], columns[0]), (rows[1], columns[1])


def _cropped(x: Tensor, inner: Window, outer: Window, scale: int) -> Tensor:
    """``x`` of a tile without its margin; a copy, so that the margin's memory is given back."""
    rows, columns = (
        slice(scale * (i.start - o.start), scale * (i.stop - o.start))
        for i, o in zip(inner, outer, strict=True)
    )
    return x[..., rows, columns].clone()


def _joined(parts: dict[tuple[int, int], Tensor]) -> Tensor:
    rows = sorted({row for row, _ in parts})
    lines = [torch.cat([parts[key] for key in sorted(parts) if key[0] == row], dim=4) for row in rows]
    return torch.cat(lines, dim=3)


def _causal_count(part: Any) -> int:
    return sum(type(module).__name__ in ("WanCausalConv3d", "WanResample") for module in part.modules())


def _causal(convolution: Any, x: Tensor, cache: Cache, index: list[int]) -> Tensor:
    """A causal convolution behind the frames that came before, as diffusers' blocks keep them."""
    at = index[0]
    kept = x[:, :, -_KEPT:].clone()
    if kept.shape[2] < _KEPT and cache[at] is not None:
        kept = torch.cat([cache[at][:, :, -1:], kept], dim=2)
    x = convolution(x, cache[at])
    cache[at] = kept
    index[0] += 1
    return x
