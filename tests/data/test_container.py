"""What is opened, and what is not: names, formats, kinds of files, streams."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cosmos_distill.data.clips import VIDEO_SUFFIXES, count_frames, decode, probe
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.write_video import write_mp4
from tests.data.video_files import add_cover, box, edit, encode, jpeg, numbered, quadrants

NAMES = [
    "12:30:05.mp4",
    "concat:a.mp4|b.mp4",
    "http:x.mp4",
    "file:a.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "data:video;base64,AAAA",
    "pipe:0",
    "%03d.mp4",
    "-y.mp4",
    "[a-b]*.mp4",
    "två 片.MP4",
    "two\nlines.mp4",
    os.fsdecode(b"latin-\xe9.mp4"),
    "no suffix",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for decoy in ("a.mp4", "b.mp4", "001.mp4"):
        encode(tmp_path / decoy, numbered(3))
    encode(tmp_path / "clip.mp4", numbered(7)).rename(name)
    for path in (Path(name), tmp_path / name):  # relative: nothing stands before the colon
        assert probe(path).frames == len(decode(path)[0]) == 7
    clip = torch.zeros(3, 2, 16, 16, dtype=torch.uint8)
    assert count_frames(write_mp4(clip, Path("new-" + name.replace("/", "")), 24.0)) == 2
    assert count_frames(write_mp4(clip, Path(name), 24.0)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        "<Representation><BaseURL>real.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "[Script Info]\nmovie=real.mp4\n",
        "real.mp4\n",
        "#!/bin/sh\necho real.mp4\n",
    ],
    ids=["ffconcat", "m3u8", "sdp", "mpd", "ass", "text", "script"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".m3u8"])
def test_text_opens_no_other_file(tmp_path: Path, text: str, suffix: str) -> None:
    encode(tmp_path / "real.mp4", numbered(5))
    path = tmp_path / f"list{suffix}"
    path.write_text(text)
    with pytest.raises(DataError, match=f"list{suffix}"):
        probe(path)
    with pytest.raises(DataError, match=f"list{suffix}"):
        decode(path)


def test_external_data_of_a_movie_is_not_opened(tmp_path: Path) -> None:
    """QuickTime tracks may name another file that holds their pictures."""
    real = encode(tmp_path / "real.mov", numbered(5))
    inside = os.fsencode(real)
    inside += bytes(len(inside) % 2)
    alias = (
        bytes(4) + bytes(10) + b"\4disk" + bytes(23) + bytes(12) + b"\x08real.mov" + bytes(55) + bytes(16)
        + struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">hH", 2, len(inside)) + inside
        + struct.pack(">hH", -1, 0)
    )  # fmt: skip
    dref = bytes(4) + struct.pack(">I", 1) + box(b"alis", alias)
    way = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    outside = tmp_path / "outside.mov"
    outside.write_bytes(edit(real.read_bytes(), way, lambda _: dref))
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(outside), options=options) as file:  # what the file asks for works where it is allowed
        assert len(list(file.decode(video=0))) == 5
    for read in (probe, decode):
        with pytest.raises(DataError, match=r"holds no frame|cannot be decoded"):
            read(outside)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "to-pipe.mp4").symlink_to("pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(tmp_path)  # names of sockets are short
        listener.bind("socket.mp4")
        os.chdir(before)
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(DataError, match=path.name):
                probe(path)
    with pytest.raises(DataError, match="no such file"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="cannot be opened"):
        probe(tmp_path / "null\0byte.mp4")
    clip = encode(tmp_path / "real.mp4", numbered(4))
    (tmp_path / "link.mp4").symlink_to(clip)
    assert count_frames(tmp_path / "link.mp4") == 4


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_claimed_sizes_are_bounded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "huge.y4m"
    path.write_bytes(f"YUV4MPEG2 W{side} H{side} F25:1 Ip A1:1 C420jpeg\nFRAME\n".encode())
    with pytest.raises(DataError, match=r"huge\.y4m"):
        probe(path)


KINDS = {
    "mp4": ("libx264", "yuv420p"), "mov": ("libx264", "yuv422p"), "mkv": ("ffv1", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"), "avi": ("mpeg4", "yuv420p"), "mpg": ("mpeg2video", "yuv420p"),
    "ts": ("libx264", "yuv420p"), "flv": ("flv", "yuv420p"), "wmv": ("wmv2", "yuv420p"),
    "ogv": ("libvpx", "yuv420p"),
    "3gp": ("libx264", "yuv420p"), "mxf": ("mpeg2video", "yuv420p"), "y4m": ("wrapped_avframe", "yuv444p"),
    "nut": ("ffv1", "yuv444p"), "ivf": ("libvpx-vp9", "yuv420p"), "m4v": ("libx264", "yuv420p"),
    "m2ts": ("libx265", "yuv420p10le"),
}  # fmt: skip
FORMATS = {"mkv": "matroska", "mpg": "vob", "ts": "mpegts", "m2ts": "mpegts", "wmv": "asf", "m4v": "mp4",
           "y4m": "yuv4mpegpipe", "ogv": "ogg"}  # fmt: skip


@pytest.mark.parametrize("suffix", KINDS)
def test_containers(tmp_path: Path, suffix: str) -> None:
    codec, pix_fmt = KINDS[suffix]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = tmp_path / f"clip.{suffix}"
    encode(path, numbered(9, 32, 64), codec=codec, pix_fmt=pix_fmt, container=FORMATS.get(suffix), fps=25)
    assert f".{suffix}" in VIDEO_SUFFIXES
    info = probe(path)
    assert (info.frames, info.height, info.width, info.rate) == (9, 32, 64, 25.0)
    frames, rate = decode(path)
    assert len(frames) == 9 and rate == 25.0
    assert max(abs(float(image.mean()) - 8 * i) for i, image in enumerate(frames)) < 5
    # The bytes decide what a file is.
    other = path.rename(tmp_path / "photo.JPG")
    assert probe(other) == info and len(decode(other, None, range(2, 7, 2))[0]) == 3


def test_cover_art_is_passed_over(tmp_path: Path) -> None:
    path = encode(tmp_path / "covered.mp4", numbered(6))
    add_cover(path, jpeg(quadrants()))
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == "mjpeg"
    assert probe(path).frames == len(decode(path)[0]) == 6


def test_a_file_of_cover_art_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "song.m4v"
    with av.open(str(path), "w", format="mp4") as out:
        audio = out.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        out.mux(audio.encode(silence))
        out.mux(audio.encode())
    with pytest.raises(DataError, match=r"no video stream$"):
        probe(path)
    add_cover(path, jpeg(quadrants()))
    with pytest.raises(DataError, match="no video stream but cover art"):
        probe(path)


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_streams_the_default_is_taken(tmp_path: Path, default: int) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        streams = []
        for i, width in enumerate((32, 48)):
            stream = out.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, 32, "yuv444p"
            stream.disposition = av.stream.Disposition.default if i == default else 0
            streams.append(stream)
        for _ in range(4):
            for stream in streams:
                out.mux(stream.encode(av.VideoFrame(stream.width, 32, "yuv444p")))
        for stream in streams:
            out.mux(stream.encode())
    assert (probe(path).width, probe(path).frames) == ((32, 48)[default], 4)
    assert decode(path)[0][0].shape[1] == (32, 48)[default]


def test_nonsense_is_named(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", numbered(8)).read_bytes()
    rubbish = {
        "random": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(5000),
        "short": whole[:20],
        "no-header": whole[: whole.index(b"moov") - 4],
        "header-only": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    }
    for name, data in rubbish.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(data)
        for read in (probe, decode):
            with pytest.raises(DataError, match=name):
                read(path)


def test_a_photo_of_a_phone_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.mp4"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(DataError, match="HEIF photo"):
        probe(path)


def test_mutated_files_are_read_or_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes are changed, lost or put in between: no other error, no crash, and nothing is printed."""
    random = np.random.default_rng(0)
    kinds = {
        "a.mp4": {},
        "b.mkv": {"container": "matroska"},
        "c.avi": {"codec": "mpeg4", "pix_fmt": "yuv420p"},
    }
    whole = [encode(tmp_path / name, [quadrants()] * 5, **settings) for name, settings in kinds.items()]
    refused = 0
    for number in range(90):
        source = whole[number % 3]
        data = bytearray(source.read_bytes())
        for _ in range(random.integers(1, 9)):
            at = int(random.integers(0, len(data) if number % 2 else 600))
            data[at : at + int(random.integers(0, 9))] = random.bytes(int(random.integers(0, 9)))
        path = tmp_path / f"changed{source.suffix}"
        path.write_bytes(data)
        for read in (probe, decode):
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error)
                refused += 1
    assert 20 < refused < 180 and capfd.readouterr().err == ""
