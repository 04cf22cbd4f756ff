"""Where decoding can begin in a long video, so that reading a window costs the same wherever it lies.

A file is demuxed once, which reads it and decodes one frame. Places where a decoder starts afresh are kept
with the number of the frame there, counted in the order of showing. What is read from such a place is what
reading from the beginning gives, bit for bit, or it is not used: :func:`frames_from` holds the frames against
the packets that went in, one by one, and :class:`Inexact` sends its caller to the beginning.

A key flag is a container's word, and some containers flag pictures after which others still look back. Places
in H.264 and HEVC therefore have to say it themselves: an instantaneous refresh, or a recovery point after
which every picture in the order of showing is exact (ITU-T H.264, D.2.8; H.265, 8.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any, NamedTuple

from cosmos_distill.data.container import Opened, decoder_of, is_hidden, opened
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.members import File

FAR = 128
"""Frames that are decoded for nothing before seeking is worth to know a file's places."""
_APART = 8
"""Frames between two places that are kept: where every frame is one, a few serve."""
_EXACT_KEYS = ("mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "av1", "ffv1", "png")
"""Codecs whose key frames forget everything before them, beside those that know no other frames."""
_PACKED = "avi"
"""Where a packet of MPEG-4 may hold two pictures."""
_H264_SLICES, _H264_IDR, _H264_SEI, _RECOVERY = (1, 2, 3, 4, 5), 5, 6, 6
_HEVC_SLICES, _HEVC_RANDOM_ACCESS = range(32), range(16, 22)


class Inexact(DataError):
    """Reading from a place is not what reading from the beginning would be: begin there."""


class Place(NamedTuple):
    """A packet at which a decoder can begin.

    Attributes:
        number: of its frame, in the order of showing.
        tick: when that is shown, in the stream's time base.
        near: time at which to look for the packet, no later than its own.
        size: bytes of the packet, by which it is known again.
    """

    number: int
    tick: int
    near: int
    size: int


class Seeks(NamedTuple):
    """What reading a file from the middle takes.

    Attributes:
        unit: seconds of a tick, a fraction in words.
        first: when the first frame is shown, in ticks.
        height: pixels of the first frame as shown, which all others have to have.
        width: likewise.
        frames: number of frames, as the packets promise.
        places: in the order of showing; none at the beginning.
    """

    unit: str
    first: int
    height: int
    width: int
    frames: int
    places: tuple[Place, ...]

    @classmethod
    def of(cls, plain: Sequence[Any] | None) -> Seeks | None:
        """From a JSON value, the inverse of ``list``."""
        if plain is None:
            return None
        *head, places = plain
        return cls._make([*head, tuple(Place(*place) for place in places)])

    def before(self, number: int) -> Place | None:
        """The last place at or before a frame; None: the beginning is as near."""
        return next((place for place in reversed(self.places) if place.number <= number), None)

    def by(self, seconds: float) -> Place | None:
        """The last place that is shown so long after the first frame, or earlier."""
        tick = self.first + Fraction(seconds) / Fraction(self.unit)
        return next((place for place in reversed(self.places) if place.tick <= tick), None)


def seeks_of(path: File, index: Index) -> Seeks | None:
    """:func:`find_seeks`, remembered; None, too, where the file cannot be read to its end."""

    def find(path: File) -> list[Any] | None:
        try:
            found = find_seeks(path)
        except DataError:
            return None
        return None if found is None else list(found)

    return Seeks.of(index.fact(path, "seeks", find))


def find_seeks(path: File) -> Seeks | None:
    """Places in ``path``; None where there is none to be sure of.

    Raises DataError when the file cannot be read.
    """
    with opened(path) as (container, stream, display, clock):
        begins = _beginnings(container, stream)
        decoder = decoder_of(stream)
        shown: tuple[int, int] | None = None
        ticks: list[int] = []
        keys: list[tuple[int, int, int, bool]] = []
        latest = oldest = None  # of all packets so far; of the group before the last key
        for packet in container.demux(stream):
            if not packet.size or is_hidden(packet, stream):
                continue
            tick = packet.pts
            if tick is None or packet.is_corrupt or begins is None:
                return None
            if packet.is_keyframe:
                if latest is not None and tick <= latest:
                    return None  # time runs back
                oldest = keys[-1][0] if keys else None
                near = tick if packet.dts is None else min(tick, packet.dts)
                keys.append((tick, near, packet.size, begins(bytes(packet)) and not packet.is_discard))
            elif not keys or tick <= (keys[0][0] if oldest is None else oldest):
                return None  # leading pictures of the first key, which nobody can decode, or time runs back
            latest = tick if latest is None else max(latest, tick)
            if not packet.is_discard:
                ticks.append(tick)
            if shown is None:
                for frame in decoder.decode(packet):
                    shown = display.check(frame)
    if shown is None or not ticks or len(set(ticks)) < len(ticks):
        return None
    numbers = {tick: number for number, tick in enumerate(sorted(ticks))}
    places: list[Place] = []
    for tick, near, size, exact in keys:
        last = places[-1].number if places else 0
        if exact and numbers[tick] >= last + _APART:
            places.append(Place(numbers[tick], tick, near, size))
    return Seeks(str(clock.unit), min(ticks), *shown, len(ticks), tuple(places)) if places else None


def frames_from(file: Opened, place: Place) -> Iterator[Any]:
    """The frames from ``place`` on in the order of showing, as decoding from the beginning gives them.

    Raises Inexact when they are not what the packets promise.
    """
    container, stream = file.container, file.stream
    container.seek(place.near, stream=stream)
    decoder = decoder_of(stream)
    due: list[int] = []
    begun = False
    for packet in container.demux(stream):
        if not begun:
            begun = packet.is_keyframe and (packet.pts, packet.size) == (place.tick, place.size)
            if not begun:
                if packet.is_keyframe and packet.pts is not None and packet.pts >= place.tick:
                    break
                continue
        if packet.size:
            if packet.pts is None:
                raise Inexact(f"{file.clock.path}: a packet without a time")
            if packet.pts < place.tick:
                continue  # shown before the place, and made from what lies before it
            if not packet.is_discard and not is_hidden(packet, stream):
                heappush(due, packet.pts)
        for frame in decoder.decode(packet):
            if not due or frame.pts != heappop(due):
                raise Inexact(f"{file.clock.path}: other frames than its packets promise")
            yield frame
    if not begun or due:
        raise Inexact(f"{file.clock.path}: other frames than its packets promise")


def _beginnings(container: Any, stream: Any) -> Any:
    """A function of a key packet's bytes: whether decoding can begin there; None: nowhere in this stream."""
    codec = stream.codec_context.codec
    name = codec.canonical_name
    if name in ("h264", "hevc"):
        proves = _h264_begins if name == "h264" else _hevc_begins
        length = _length_size(bytes(stream.codec_context.extradata or b""), hevc=name == "hevc")
        return lambda data: proves(_units(data, length))
    if name == "mpeg4" and container.format.name == _PACKED:
        return None
    return (lambda data: True) if codec.intra_only or name in _EXACT_KEYS else None


def _length_size(extradata: bytes, *, hevc: bool) -> int:
    """Bytes of the lengths before NAL units; 0: they lie between start codes (ISO/IEC 14496-15)."""
    at = 21 if hevc else 4
    if len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def _units(data: bytes, length: int) -> Iterator[bytes]:
    """NAL units of a packet."""
    if not length:
        for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]:
            if unit:
                yield unit
        return
    at = 0
    while at + length < len(data):
        size = int.from_bytes(data[at : at + length], "big")
        at += length
        if size:
            yield data[at : at + size]
        at += size


def _h264_begins(units: Iterator[bytes]) -> bool:
    exact = False
    for unit in units:
        kind = unit[0] & 31
        if kind in _H264_SLICES:
            return exact or kind == _H264_IDR
        if kind == _H264_SEI:
            exact |= any(
                # recovery_frame_cnt is ue(v): a set first bit is 0; then exact_match_flag, broken_link_flag
                what == _RECOVERY and payload[:1] and payload[0] & 0b11100000 == 0b11000000
                for what, payload in _messages(unit[1:].replace(b"\0\0\3", b"\0\0"))
            )
    return False


def _hevc_begins(units: Iterator[bytes]) -> bool:
    first = next((kind for unit in units if (kind := unit[0] >> 1 & 63) in _HEVC_SLICES), None)
    return first in _HEVC_RANDOM_ACCESS


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of every message of supplemental enhancement information."""
    at = 0
    while at + 2 <= len(data) and data[at] != 0x80:
        numbers = []
        for _ in range(2):
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            if at == len(data):
                return
            numbers.append(number + data[at])
            at += 1
        yield numbers[0], data[at : at + numbers[1]]
        at += numbers[1]
