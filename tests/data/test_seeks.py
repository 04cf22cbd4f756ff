"""Windows in the middle of long videos: the same as from the beginning, at a cost that does not grow."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cosmos_distill.config import Data
from cosmos_distill.data import seeks as reading
from cosmos_distill.data import video
from cosmos_distill.data.display import Display
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.seeks import Seeks, find_seeks, seeks_of
from cosmos_distill.data.video import Window, at_times, probe, window
from tests.data.folders import open_, write_clip, write_text
from tests.data.video_files import edit, encode, moving, trim

COUNT, GROUP = 72, 24
B = {"g": str(GROUP), "preset": "fast", "crf": "24"}
OPEN = B | {"x264-params": "bframes=3:b-adapt=0:open-gop=1:b-pyramid=normal:ref=4:scenecut=0"}
REFRESH = {"x264-params": "intra-refresh=1:scenecut=0:keyint=24"}
HEVC_OPEN = "keyint=24:open-gop=1:bframes=4:log-level=0"
HIDDEN = {"g": str(GROUP), "auto-alt-ref": "1", "lag-in-frames": "16", "lossless": "0", "b": "200k"}
KINDS: dict[str, dict[str, Any]] = {
    "b.mp4": {"options": B | {"x264-params": "bframes=3:b-adapt=0:b-pyramid=normal:ref=4:scenecut=0"}},
    "open.mp4": {"options": OPEN},
    "open.mkv": {"container": "matroska", "options": OPEN},
    "open.ts": {"container": "mpegts", "options": OPEN},
    "fragments.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}, "options": B},
    "uneven.mp4": {"options": B, "times": [40 * i + 130 * max(0, i - 40) for i in range(COUNT)]},
    "late.mkv": {"container": "matroska", "options": B, "times": [5000 + 40 * i for i in range(COUNT)]},
    "hidden.webm": {"codec": "libvpx", "options": HIDDEN},
    "hidden9.webm": {"codec": "libvpx-vp9", "options": HIDDEN},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": HEVC_OPEN}},
    "mpeg2.ts": {"codec": "mpeg2video", "container": "mpegts", "options": {"g": str(GROUP), "bf": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": str(GROUP), "bf": "2"}},
    "every.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}  # fmt: skip
WINDOWS = [range(start, start + 6) for start in (0, 23, 24, 25, 47, 50, COUNT - 6)]


def make(folder: Path, kind: str) -> Path:
    return encode(folder / kind, moving(), **{"pix_fmt": "yuv420p"} | KINDS[kind])


@pytest.fixture
def fell_back(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read from the beginning."""
    found: list[Path] = []
    read = video.read_alike

    def read_alike(path: Path, how: Callable[..., Any]) -> Any:
        found.append(path)
        return read(path, how)

    monkeypatch.setattr(video, "read_alike", read_alike)
    return found


def same(one: Window, other: Window) -> bool:
    pictures = all(np.array_equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))
    return pictures and (one.rate, one.times) == (other.rate, other.times)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_what_it_is_from_the_beginning(tmp_path: Path, kind: str, fell_back: list[Path]) -> None:
    path = make(tmp_path, kind)
    seeks = find_seeks(path)
    assert seeks is not None and seeks.frames == probe(path).frames == COUNT
    for wanted in WINDOWS:
        whole = window(path, wanted)
        fell_back.clear()
        assert same(window(path, wanted, None, seeks), whole)
        later = [time + 0.004 for time in whole.times]
        alike = zip(at_times(path, later), at_times(path, later, None, seeks), strict=True)
        assert all(np.array_equal(a, b) for a, b in alike)
        if seeks.before(wanted[0]) is not None:
            assert len(fell_back) == 1  # at_times without seeks
    assert seeks.before(COUNT - 6) is not None


def test_a_cut_without_encoding_again(tmp_path: Path, fell_back: list[Path]) -> None:
    """An edit list hides what is decoded first, which counts for nothing."""
    path = trim(make(tmp_path, "b.mp4"), tmp_path / "cut.mp4", 7, 66)
    seeks = find_seeks(path)
    assert seeks is not None and [place.number for place in seeks.places] == [17, 41]
    for start in (16, 17, 20, 41, 45):
        whole = window(path, range(start, start + 5))
        fell_back.clear()
        assert same(window(path, range(start, start + 5), None, seeks), whole)
        assert len(fell_back) == (start < 17)


def test_frames_decoded_for_a_window_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "long.mp4", moving(600, 16, 32), pix_fmt="yuv420p", options={"g": "30"})
    seeks, checked = find_seeks(path), []
    check = Display.check
    monkeypatch.setattr(Display, "check", lambda self, frame: checked.append(1) or check(self, frame))
    for start in (45, 300, 594):
        window(path, range(start, start + 5), None, seeks)
        assert len(checked) <= 30 + 5
        checked.clear()
    window(path, range(594, 599))
    assert len(checked) == 599


def test_where_pictures_refresh_little_by_little_nothing_begins(tmp_path: Path) -> None:
    for name, container in (("a.mkv", "matroska"), ("a.ts", "mpegts")):
        path = encode(tmp_path / name, moving(), pix_fmt="yuv420p", container=container, options=REFRESH)
        with av.open(str(path)) as file:
            keys = [packet.is_keyframe for packet in file.demux(video=0) if packet.size]
        assert sum(keys) > 1 or name == "a.mkv"  # the container says so
        assert find_seeks(path) is None


def test_a_container_that_lies_about_keys_is_not_believed(tmp_path: Path) -> None:
    """Pictures that look back, marked as ones at which decoding can begin, as some recorders do."""
    every = struct.pack(f">{COUNT + 2}I", 0, COUNT, *range(1, COUNT + 1))
    way = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stss")
    options = {"x265-params": "keyint=24:min-keyint=24:scenecut=0:bframes=0:log-level=0"}
    path = encode(tmp_path / "a.mp4", moving(), codec="libx265", pix_fmt="yuv420p", options=options)
    path.write_bytes(edit(path.read_bytes(), way, lambda _: every))
    with av.open(str(path)) as file:
        assert all(packet.is_keyframe for packet in file.demux(video=0) if packet.size)
    seeks = find_seeks(path)
    assert seeks is not None and [place.number for place in seeks.places] == [24, 48]


def test_what_comes_out_is_held_against_what_went_in(tmp_path: Path, fell_back: list[Path]) -> None:
    """Places of another file: read from the beginning, and right."""
    path = make(tmp_path, "b.mp4")
    seeks = find_seeks(path)
    assert seeks is not None
    wanted = range(50, 55)
    whole = window(path, wanted)
    for wrong in (
        seeks._replace(places=tuple(place._replace(size=place.size + 1) for place in seeks.places)),
        seeks._replace(places=tuple(place._replace(tick=place.tick + 1) for place in seeks.places)),
        seeks._replace(height=seeks.height + 2),
    ):
        fell_back.clear()
        assert same(window(path, wanted, None, wrong), whole) and fell_back == [path]


def test_damage_is_found_as_from_the_beginning(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
    path = encode(tmp_path / "a.mov", noise, codec="png", pix_fmt="rgb24")
    seeks = find_seeks(path)
    data = bytearray(path.read_bytes())
    begin = [at for at in range(len(data)) if data[at : at + 4] == b"\x89PNG"][20]
    data[begin + 60 : begin + 2000] = bytes(1940)
    path.write_bytes(data)
    behind = window(path, range(25, 30), None, seeks)  # which is nothing to what comes after it
    assert all(np.array_equal(a, b) for a, b in zip(behind.frames, noise[25:], strict=True))
    with pytest.raises(DataError, match=r"a\.mov"):
        window(path, range(17, 22), None, seeks)
    with pytest.raises(DataError, match=r"a\.mov"):
        window(path, range(27, 32), None, seeks)


def test_places_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, index = make(tmp_path, "b.mp4"), Index(tmp_path / "facts")
    monkeypatch.setattr("cosmos_distill.data.index.SETTLED_NS", 0)
    found = seeks_of(path, index)
    index.save()
    monkeypatch.setattr(reading, "find_seeks", lambda path: pytest.fail("looked for again"))
    again = seeks_of(path, Index(tmp_path / "facts"))
    assert isinstance(again, Seeks) and again == found


def test_a_source_reads_long_clips_from_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(source="folder", tokenizer="haar", frames=5, height=32, width=32, root=tmp_path)
    for name in ("a", "b"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", 400, noise=1, g="20")
        write_clip(tmp_path / "depth" / f"{name}.mp4", 400, noise=2, g="20")
        write_text(tmp_path, name)
    decoded: list[int] = []
    check = Display.check
    monkeypatch.setattr(Display, "check", lambda self, frame: decoded.append(1) or check(self, frame))
    source = open_(data, "depth")
    decoded.clear()
    near = source.batch(0, 6)
    assert len(decoded) <= 6 * (20 + 5)
    monkeypatch.setattr("cosmos_distill.data.folder.FAR", 10**6)
    plain = open_(data, "depth").batch(0, 6)
    assert near.names == plain.names and near.latents.equal(plain.latents)
    assert near.conditioning.hint is not None and plain.conditioning.hint is not None
    assert near.conditioning.hint.equal(plain.conditioning.hint)
    assert len(decoded) > 6 * (20 + 5)
