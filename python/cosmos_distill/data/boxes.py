"""What FFmpeg knows of an MP4 or QuickTime file and PyAV does not pass on (ISO/IEC 14496-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from io import RawIOBase
from typing import NamedTuple

_MOST_BOXES = 100_000
"""A forged file cannot keep the walk busy for longer."""
_SAMPLE_ENTRY = 78
"""Bytes of a visual sample entry before the boxes in it."""


class Crop(NamedTuple):
    """Whole pixels to leave out at each side of the stored picture."""

    left: int
    top: int
    right: int
    bottom: int


def boxes(file: RawIOBase, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte of the content and end of every box between two places of the file."""
    for _ in range(_MOST_BOXES):
        file.seek(begin)
        header = file.read(16)
        if begin + 8 > end or len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        content = begin + 8
        if size == 1 and len(header) == 16:
            size, content = struct.unpack(">Q", header[8:])[0], begin + 16
        stop = end if size == 0 else begin + size
        if stop < content or stop > end:
            return
        yield kind, content, stop
        begin = stop


def end_of(file: RawIOBase) -> int:
    """Size of an open file."""
    return file.seek(0, 2)


def brand(file: RawIOBase) -> bytes:
    """The major brand of an ISO file, or b"" where it is none."""
    file.seek(4)
    kind, major = file.read(4), file.read(4)
    return major if kind == b"ftyp" else b""


def is_fragmented(file: RawIOBase) -> bool:
    """Whether pictures are listed outside of the header too, so that its index is not complete."""
    return any(kind == b"moof" for kind, _, _ in boxes(file, 0, end_of(file)))


def clean_aperture(file: RawIOBase, track: int, width: int, height: int) -> Crop:
    """What the ``clap`` box of the track with this number leaves out of a picture of width x height.

    Sides are rounded to whole pixels. A box that lies outside of the picture counts as none, as in FFmpeg.
    """
    nothing = Crop(0, 0, 0, 0)
    for trak, end in _inside(file, 0, end_of(file), b"moov", b"trak"):
        numbers = [_track_number(file, begin) for begin, _ in _inside(file, trak, end, b"tkhd")]
        if track not in numbers:
            continue
        for begin, stop in _inside(file, trak, end, b"mdia", b"minf", b"stbl", b"stsd"):
            for _, entry, entry_end in boxes(file, begin + 8, stop):  # version, flags, number of entries
                for clap, _ in _inside(
                    file, entry + 78, entry_end, b"clap"
                ):  # a visual sample entry is 78 bytes
                    file.seek(clap)
                    data = file.read(32)
                    return _crop(data, width, height) if len(data) == 32 else nothing
    return nothing


def _inside(file: RawIOBase, begin: int, end: int, *path: bytes) -> Iterator[tuple[int, int]]:
    """Content of every box at ``path`` below begin..end."""
    for kind, content, stop in list(boxes(file, begin, end)):
        if kind == path[0]:
            if len(path) == 1:
                yield content, stop
            else:
                yield from _inside(file, content, stop, *path[1:])


def _track_number(file: RawIOBase, tkhd: int) -> int:
    file.seek(tkhd)
    data = file.read(24)
    at = 20 if data[:1] == b"\x01" else 12  # version 1 has 64-bit times
    return int.from_bytes(data[at : at + 4], "big")


def _crop(data: bytes, width: int, height: int) -> Crop:
    numbers = struct.unpack(">IIIIiIiI", data)  # widths are unsigned, offsets signed; each over a denominator
    if 0 in numbers[1::2]:
        return Crop(0, 0, 0, 0)
    wide, high, right, down = (Fraction(n, d) for n, d in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    edges = Crop(round(left), round(top), width - round(left + wide), height - round(top + high))
    inside = min(edges) >= 0 and edges.left + edges.right < width and edges.top + edges.bottom < height
    return edges if inside else Crop(0, 0, 0, 0)
