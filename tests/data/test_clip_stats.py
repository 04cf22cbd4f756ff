"""The numbers of clips: what each tells apart, on frames in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_distill.data import alike, clip_stats
from cosmos_distill.data.clip_stats import ClipStats, Frames, look
from cosmos_distill.data.clips import probe
from cosmos_distill.data.errors import DataError
from tests.data import looks
from tests.data.video_files import encode

STATS = {
    "good": Frames.of_video(looks.moving(1)).stats(),
    "still": Frames.of_video(looks.still(1)).stats(),
    "dark": Frames.of_video(looks.dark(1)).stats(),
    "blurred": Frames.of_video(looks.blurred(1)).stats(),
    "saturated": Frames.of_video(looks.saturated(1)).stats(),
    "boxed": Frames.of_video(looks.boxed(1)).stats(),
    "grey": Frames.of_video(np.full((8, 48, 64, 3), 127, np.uint8)).stats(),
}


def difference(one: ClipStats, other: ClipStats) -> float:
    """Share of bits in which the hashes differ."""
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex("".join(s.hashes)), np.uint8)) for s in (one, other)]
    return float((bits[0] != bits[1]).mean())


def test_each_number_tells_what_it_is_for() -> None:
    good = STATS["good"]
    assert 0.3 < good.brightness < 0.7 and STATS["dark"].brightness < 0.02
    assert good.motion is not None and good.motion > 2 and STATS["still"].motion == 0
    assert good.repeated == 0 and STATS["still"].repeated == 1
    assert good.blur is not None and STATS["blurred"].blur is not None
    assert STATS["blurred"].blur > good.blur + 0.2
    assert good.saturated < 0.05 and STATS["saturated"].saturated > 0.95
    assert STATS["grey"].contrast < 1e-3 < good.contrast and STATS["grey"].blur is None
    assert STATS["grey"].brightness == pytest.approx(127 / 255, abs=1e-3)


def test_motion_is_the_mean_absolute_difference_of_luma() -> None:
    video = np.stack([np.full((20, 30, 3), 10 * i, np.uint8) for i in range(6)])
    assert Frames.of_video(video).stats().motion == pytest.approx(10)


def test_black_bars_are_measured_and_left_out_of_the_rest() -> None:
    boxed, good = STATS["boxed"], STATS["good"]
    assert boxed.bars == pytest.approx(32 / 96, abs=0.01) and good.bars == 0
    assert boxed.brightness == pytest.approx(good.brightness, abs=0.01)
    assert boxed.motion == pytest.approx(good.motion, rel=0.05)
    assert difference(boxed, good) < 0.05
    black = Frames.of_video(np.zeros((4, 32, 48, 3), np.uint8)).stats()
    assert black.bars == 0 and black.brightness == 0


def test_bars_leave_what_is_lit_wherever_it_is() -> None:
    """One row or column of many sizes: shares are rounded, and a frame has an inside."""
    for size in range(8, 130, 7):
        for lit in range(size):
            frames = np.zeros((2, size, 16, 3), np.uint8)
            frames[:, lit] = 200
            before, after = lit / size, 1 - (lit + 1) / size
            bars = clip_stats.Bars(before, after, 0.0, 0.0)
            assert np.array_equal(bars.crop(frames), frames[:, lit : lit + 1]), (size, lit)
    thin = np.zeros((3, 72, 128, 3), np.uint8)
    thin[:, 23] = 255
    assert clip_stats.Frames.of_video(thin).stats().bars > 0.9


def test_short_clips_are_compared_with_short_ones() -> None:
    short, long = ["8edd9c0b844772f4"], ["e1853cb8ba3b5a4a", "e8c6069f990d4d6b"]
    assert alike.groups([short, long, short, short]) == [[0, 2, 3]]
    assert alike.groups([short, long, short, [], long]) == [[0, 2], [1, 4]]


def test_cuts_count_and_are_no_motion() -> None:
    # Neighbouring pictures differ by more than find_cuts asks for.
    video = np.concatenate([looks.moving(1, 12), 255 - looks.moving(1, 12), looks.moving(3, 12)])
    found = Frames.of_video(video).stats()
    assert found.cuts == (12, 24)
    alone = Frames.of_video(looks.moving(1, 12)).stats().motion
    assert found.motion is not None and alone is not None and found.motion < 2 * alone


def test_copies_are_alike_and_other_clips_are_not() -> None:
    video = looks.moving(1)
    copies = [
        video,
        video[:, ::2, ::2],
        np.clip(video * 0.8 + 20, 0, 255).astype(np.uint8),
        np.clip(video + np.random.default_rng(0).normal(0, 4, video.shape), 0, 255).astype(np.uint8),
    ]
    others = [looks.moving(seed) for seed in range(2, 8)]
    stats = [Frames.of_video(v).stats() for v in (others[0], *copies, *others[1:])]
    assert alike.groups([s.hashes for s in stats]) == [[1, 2, 3, 4]]
    assert min(difference(stats[0], s) for s in stats[1:]) > 2 * alike.ALIKE


def test_groups_of_many_and_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes = [tuple(random.bytes(8).hex() for _ in range(5)) for _ in range(50)]
    monkeypatch.setattr(alike, "_BLOCK", 7)
    assert alike.groups(hashes) == [] == alike.groups([]) == alike.groups(hashes[:1])
    twice = [*hashes, *hashes[10:20], ("00",), hashes[0]]
    assert alike.groups(twice) == [[0, 61], *([i, i + 40] for i in range(10, 20))]


def test_numbers_of_a_file_are_those_of_its_frames(tmp_path: Path) -> None:
    video = looks.moving(5, 30)
    path = encode(tmp_path / "a.mp4", list(video), pix_fmt="yuv444p")
    found, wanted = look(path, probe(path)).stats(), Frames.of_video(video).stats()
    assert found.looked_at == 30 and not found.damage
    for name in ("brightness", "contrast", "blur", "saturated"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=0.02), name
    assert found.motion == pytest.approx(wanted.motion, rel=0.05)
    assert difference(found, wanted) < 0.05
    assert ClipStats.of_plain(found.plain()) == found


def test_of_a_long_clip_a_few_places_are_looked_at(tmp_path: Path) -> None:
    """What is shown at the same times is decoded, wherever key frames lie."""
    count = clip_stats.WHOLE + 60
    frames = [np.full((16, 32, 3), i % 250, np.uint8) for i in range(count)]
    stats = []
    for every in (7, 50):
        options = {"g": str(every), "crf": "1", "preset": "ultrafast", "sc_threshold": "0"}
        path = encode(tmp_path / f"{every}.mp4", frames, options=options)
        read = look(path, probe(path))
        assert list(read.starts) == clip_stats.sample_numbers(count)
        for start, stretch in zip(read.starts, read.stretches, strict=True):
            length = min(clip_stats.WHOLE // clip_stats.SAMPLES, count - start)
            grey = stretch.mean(axis=(1, 2, 3))
            assert (
                len(stretch) == length and np.abs(grey - (np.arange(start, start + length) % 250)).max() < 3
            )
        stats.append(read.stats())
    assert stats[0].brightness == pytest.approx(stats[1].brightness, abs=0.005)


@pytest.mark.parametrize("container", ["matroska", "avi", "mpegts", "nut", "no seek"])
def test_a_long_clip_is_sought_in_whatever_it_lies_in(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a few frames: what packets a transport stream is cut into says nothing of them."""
    count = clip_stats.WHOLE + 60
    frames = [np.full((32, 64, 3), i * 240 // count, np.uint8) for i in range(count)]
    options = {"g": "25", "crf": "1", "preset": "ultrafast", "sc_threshold": "0", "bf": "0"}
    kind = "mp4" if container == "no seek" else container
    path = encode(tmp_path / "clip.bin", frames, container=kind, pix_fmt="yuv420p", options=options)
    info = probe(path)
    if container == "no seek":
        error = DataError(f"{path} cannot be decoded (Operation not permitted)")
        monkeypatch.setattr(clip_stats, "_frames_from", lambda *args: (_ for _ in ()).throw(error))
    read = look(path, info)
    assert len(read.samples) == clip_stats.SAMPLES and not read.damage
    for start, stretch in zip(read.starts, read.stretches, strict=True):
        wanted = np.arange(start, start + len(stretch)) * 240 // count
        assert len(stretch) > 20 and np.abs(stretch.mean(axis=(1, 2, 3)) - wanted).max() < 20


def test_damage_is_said_and_what_is_left_is_measured(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", list(looks.moving(1, 40)), mux={"movflags": "faststart"})
    info, content = probe(path), bytearray(path.read_bytes())
    for at in range(len(content) // 2, len(content) * 3 // 4, 101):
        content[at] ^= 0x5A
    path.write_bytes(content)
    found = look(path, info).stats()
    assert "of 40 frames" in found.damage and str(tmp_path) not in found.damage
    assert 0.3 < found.brightness < 0.7
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"a\.mp4"):
        look(path, info)


def test_a_single_frame_has_no_motion() -> None:
    found = Frames.of_video(looks.still(1, 1)).stats()
    assert found.motion is None and found.repeated is None and found.cuts == () and len(found.hashes) == 5
