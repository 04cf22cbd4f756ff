"""Containers and streams. Every file that PyAV reads is opened here.

A path is a path: FFmpeg gets the open file and no name, so that it can take nothing in it for a protocol, a
pattern or an option. The bytes decide what a file is, not the suffix; only containers are read, and a file
cannot make anything else be opened.

Pictures that an edit list hides do not count, cover art is no video, and of several video streams the one
marked as default is taken, or the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from cosmos_distill.data import boxes
from cosmos_distill.data.display import MAX_PIXELS, Display
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opening import open_regular
from cosmos_distill.data.rates import Clock
from cosmos_distill.members import File

T = TypeVar("T")
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,mxf,yuv4mpegpipe,nut,ivf"
"""Demuxers of FFmpeg: none that names further files, no protocol, no device."""
_ISO = "mov,mp4,m4a,3gp,3g2,mj2"
_PHOTOS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
_BUFFER = 2**18
"""Bytes read at once."""


class Opened(NamedTuple):
    """A container of PyAV and its video stream, which end with the block, and what outlives them."""

    container: Any
    stream: Any
    display: Display
    clock: Clock


def pyav() -> ModuleType:
    """PyAV, or a DataError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise DataError("videos need PyAV: pip install 'cosmos-distill[video]'") from error
    return av


@contextmanager
def video_stream(path: File) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of ``path``; whatever FFmpeg objects to becomes a DataError."""
    with opened(path) as file:
        yield file.container, file.stream


@contextmanager
def opened(path: File) -> Iterator[Opened]:
    """:func:`video_stream`, and how and when its frames are shown."""
    av = pyav()
    with open_regular(path) as file:
        if boxes.brand(file) in _PHOTOS:
            raise DataError(f"{path} is a HEIF photo, which cannot be read here: save it as JPEG or PNG")
        file.seek(0)
        try:
            with av.open(
                file,
                options={"max_pixels": str(MAX_PIXELS)},
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
                metadata_errors="replace",
                buffer_size=_BUFFER,
            ) as container:
                stream = _shown_stream(container, path)
                crop = boxes.Crop(0, 0, 0, 0)
                if container.format.name == _ISO:
                    at = file.tell()
                    crop = boxes.clean_aperture(file, stream.id, stream.width, stream.height)
                    file.seek(at)
                clock = Clock(path, stream.time_base, stream.average_rate or stream.guessed_rate or None)
                yield Opened(container, stream, Display(path, stream.sample_aspect_ratio, crop), clock)
        except av.error.ArgumentError as error:  # what FFmpeg says of a format that is not on the list
            raise DataError(f"{path} cannot be decoded: it is no video file ({error.strerror})") from error
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{path} cannot be decoded ({error.strerror or error})") from error


def read_alike(path: File, read: Callable[[Opened], T]) -> T:
    """``read`` of a file, the same on every machine, and DataError on every machine where it cannot be read.

    FFmpeg conceals damage with what its threads have decoded by then, so that the pictures depend on how many
    they are and on chance. Several threads therefore stop at the first sign of damage, and a single one then
    reads the file again, as a player shows it.
    """
    try:
        return read_whole(path, read)
    except DataError:
        with opened(path) as file:
            file.stream.codec_context.thread_count = 1
            return read(file)


def read_whole(path: File, read: Callable[[Opened], T]) -> T:
    """``read`` of a file by several threads, and DataError at the first sign of damage."""
    with opened(path) as file:
        file.stream.thread_type = "AUTO"
        file.stream.codec_context.options |= {"err_detect": "explode"}
        return read(file)


def _shown_stream(container: Any, path: File) -> Any:
    picture = pyav().stream.Disposition.attached_pic
    real = [s for s in container.streams.video if not s.disposition & picture and s.codec_context is not None]
    if not real:
        covers = " but cover art" if container.streams.video else ""
        raise DataError(f"{path}: no video stream{covers}")
    default = pyav().stream.Disposition.default
    stream = next((s for s in real if s.disposition & default), real[0])
    width, height = stream.width, stream.height
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: claims {width} x {height} pixels, more than the {MAX_PIXELS} of a frame")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def decoder_of(stream: Any) -> Any:
    """The stream's decoder. FFmpeg's own for VP8 and VP9 ignore transparency, libvpx's do not."""
    context = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
    # Matroska's own element, or a tag that encoders write in capital letters.
    says = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or says.get("alpha_mode", "0") == "0":
        return context
    av = pyav()
    try:
        own = av.CodecContext.create(name, "r")
    except av.codec.codec.UnknownCodecError as error:
        raise DataError(f"a transparent {context.name} video needs an FFmpeg that has {name}") from error
    own.options = context.options
    for colour in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(own, colour, getattr(context, colour))
    return own


def shown_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame of the stream in the order of showing; those that an edit list hides are left out."""
    decoder = decoder_of(stream)
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def is_hidden(packet: Any, stream: Any) -> bool:
    """Whether a packet of VP8 only serves later ones (RFC 6386, 9.1: the bit show_frame)."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def index_of(container: Any, stream: Any, path: File, whole: bool = False) -> list[int] | None:
    """When the frames of an MP4 are decoded, in units of its time base.

    None where its index does not list them all, or hides some: what is left of reordered frames is decoded at
    no even pace.
    ``whole`` asks that those which are shown lie inside the file.
    """
    if container.format.name != _ISO or not stream.frames:
        return None
    with open_regular(path) as file:
        size = boxes.end_of(file)
        if boxes.is_fragmented(file):
            return None
    shown = [entry for entry in stream.index_entries if not entry.is_discard]
    there = sum(entry.pos + entry.size <= size for entry in shown)
    if whole and there < len(shown):
        raise DataError(f"{path}: truncated, {there} of {len(shown)} frames")
    return [entry.timestamp for entry in shown] if len(shown) == len(stream.index_entries) else None
