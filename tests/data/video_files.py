"""Small video files of every kind, made with PyAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

COLOURS = {"top left": (200, 30, 30), "top right": (30, 180, 40), "bottom left": (40, 50, 190),
           "bottom right": (210, 200, 60)}  # fmt: skip


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """Four colours, so that every way to turn or mirror the picture is another picture. RGB uint8."""
    image = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    image[:h, :w], image[:h, w:] = COLOURS["top left"], COLOURS["top right"]
    image[h:, :w], image[h:, w:] = COLOURS["bottom left"], COLOURS["bottom right"]
    return image


def numbered(count: int, height: int = 16, width: int = 32) -> list[np.ndarray]:
    """Frames that tell their number by their grey level: 8 times the number."""
    return [np.full((height, width, 3), 8 * i, np.uint8) for i in range(count)]


def moving(count: int = 72, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Texture that moves and a square that goes its own way, so that every frame is made from others."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 128, (height, 2 * width, 3), dtype=np.uint8)
    frames = []
    for i in range(count):
        image = np.roll(ground, -i, 1)[:, :width].copy()
        image[5:20, 3 * i % (width - 8) :][:, :8] = (250, 5 * i % 255, 30)
        frames.append(image)
    return frames


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    fps: Fraction | int = 24,
    times: Sequence[int] | None = None,
    container: str | None = None,
    mux: dict[str, str] | None = None,
    matrix: int | None = None,
    full: bool = False,
    tags: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
    prepare: Any = None,
) -> Path:
    """Write RGB or RGBA frames.

    ``times`` are presentation times in 1/1000 s. ``matrix`` (a number of swscale's) and ``full`` say how the
    pixels are converted, ``tags`` what the file says about it. ``prepare`` gets the stream before any frame.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {
        "libx264": {"crf": "1", "preset": "ultrafast"},
        "libvpx-vp9": {"lossless": "1", "cpu-used": "8"},
    }
    reformatter = VideoReformatter()
    with (
        path.open("wb") as file,
        av.open(file, "w", format=container or path.suffix[1:], options=mux or {}) as out,
    ):
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.options = {**quality.get(codec, {}), **(options or {})}
        context = stream.codec_context
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if times is not None:
            context.time_base = Fraction(1, 1000)
        if prepare is not None:
            prepare(stream)
        for i, image in enumerate(frames):
            layout = "rgba" if image.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=layout)
            frame = reformatter.reformat(
                frame, format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1,
            )  # fmt: skip
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def trim(source: Path, target: Path, first: int, last: int, fps: int = 24) -> Path:
    """Cut without encoding again: stored from the keyframe before ``first`` on, hidden by an edit list.

    As in any such cut, what is needed to decode the last frames is shown too where it comes after them.
    """
    container = {"options": {"avoid_negative_ts": "disabled"}, "format": target.suffix[1:]}
    with av.open(str(source)) as src, target.open("wb") as file, av.open(file, "w", **container) as dst:
        stream = dst.add_stream_from_template(src.streams.video[0])
        packets = [packet for packet in src.demux(video=0) if packet.dts is not None]
        needed = [
            i for i, packet in enumerate(packets) if packet.pts * packet.time_base < Fraction(last, fps)
        ]
        for packet in packets[: needed[-1] + 1]:
            shift = int(Fraction(first, fps) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            dst.mux(packet)
    return target


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every box of ``data``."""
    begin = 0
    while begin < len(data):
        size, kind = struct.unpack(">I4s", data[begin : begin + 8])
        yield kind, data[begin + 8 : begin + size]
        begin += size


def edit(data: bytes, path: Sequence[bytes], change: Any) -> bytes:
    """The file with the content of the box at ``path`` replaced by ``change`` of it; sizes are mended."""
    result = []
    for kind, content in boxes(data):
        if kind == path[0]:
            if len(path) == 1:
                content = change(content)
            elif kind == b"stsd":
                content = content[:8] + edit(content[8:], path[1:], change)
            else:
                content = edit(content, path[1:], change)
        result.append(box(kind, content))
    return b"".join(result)


def add_clean_aperture(path: Path, width: int, height: int, right: int = 0, down: int = 0) -> None:
    """Say in an mp4, written without faststart, how much of the picture is shown; offsets in half pixels."""
    clap = box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 2, down, 2))
    way = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")
    path.write_bytes(edit(path.read_bytes(), way, lambda content: content + clap))


def add_cover(path: Path, jpeg: bytes) -> None:
    """Put cover art before the video track of an mp4, so that it is listed as the first video stream."""
    item = box(b"covr", box(b"data", struct.pack(">II", 13, 0), jpeg))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", item)))

    def change(moov: bytes) -> bytes:
        head, *rest = [box(kind, content) for kind, content in boxes(moov) if kind != b"udta"]
        return head + udta + b"".join(rest)

    path.write_bytes(edit(path.read_bytes(), (b"moov",), change))


def jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(image).save(target, format="JPEG", quality=95)
    return target.getvalue()
