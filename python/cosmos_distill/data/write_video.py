"""Clips as video files that every player shows in their colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.data.container import pyav
from cosmos_distill.data.frames import to_frames
from cosmos_distill.storage import replacing

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SIDE = 256
_BT709, _LIMITED, _FULL = 1, 1, 2
"""Matrix, primaries and transfer, and the ranges, in the numbers of ITU-T H.273 and FFmpeg."""


def write_mp4(clip: Tensor, path: Path, fps: float) -> Path:
    """Write one clip, uint8 [3, F, H, W], as H.264 in BT.709, limited range, and say so in the file.

    Small ones are enlarged by repeating pixels, so that a player shows them; so are odd sizes, which 4:2:0
    lacks. The file appears whole or not at all.
    """
    av = pyav()
    height, width = clip.shape[-2:]
    factor = max(1, -(-SMALLEST_SIDE // min(height, width)))
    if factor % 2 and (height % 2 or width % 2):
        factor += 1
    frames = to_frames(clip[None])[0].repeat(factor, axis=1).repeat(factor, axis=2)
    scaler = av.video.reformatter.Interpolation
    flags = scaler.BICUBIC | scaler.ACCURATE_RND | scaler.FULL_CHR_H_INP
    # FFmpeg gets an open file, so that it takes nothing in the name for a protocol or a pattern.
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=_BT709, src_color_range=_FULL, dst_color_range=_LIMITED,
                interpolation=flags,
            )  # fmt: skip
            frame.color_primaries = frame.color_trc = _BT709
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
