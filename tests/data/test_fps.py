"""Clips of any rate at one rate: of every time the frame that is nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_distill.config import Data
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.seeks import find_seeks
from cosmos_distill.data.video import ClipInfo, probe, resampled, window
from cosmos_distill.data.windows import windows_of
from tests.data.folders import open_, write_clip, write_text
from tests.data.video_files import encode, moving, numbered


def numbers(frames: list[np.ndarray]) -> list[int]:
    return [round(float(image.mean()) / 8) for image in frames]


def nearest(shown: list[float], times: list[float]) -> list[int]:
    return [min(range(len(shown)), key=lambda i: (round(abs(shown[i] - time), 5), i)) for time in times]


@pytest.mark.parametrize("own", [12, 24, 25, 30])
@pytest.mark.parametrize("rate", [8.0, 23.976, 24.0, 30.0])
def test_every_time_has_the_nearest_frame(tmp_path: Path, own: int, rate: float) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(30), fps=own)
    shown = [i / own for i in range(30)]
    for begin in (0.0, 3 / own, 0.11):
        times = [begin + i / rate for i in range(5)]
        found = resampled(path, begin, 5, rate)
        assert numbers(found.frames) == nearest(shown, times) and found.rate == rate
        assert found.times == pytest.approx([shown[i] for i in nearest(shown, times)], abs=1e-4)


def test_a_clip_at_its_own_rate_is_what_it_was(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", moving(40), pix_fmt="yuv420p")
    for start in (0, 7, 35):
        was, now = window(path, range(start, start + 5)), resampled(path, start / 24, 5, 24.0)
        assert all(np.array_equal(a, b) for a, b in zip(was.frames, now.frames, strict=True))
        assert was.times == now.times and was.rate == now.rate


def test_uneven_times_are_respected(tmp_path: Path) -> None:
    times = [0, 40, 100, 300, 310, 320, 700, 900]
    path = encode(tmp_path / "clip.mkv", numbered(8), times=times, container="matroska")
    found = resampled(path, 0.0, 9, 10.0)
    assert numbers(found.frames) == [0, 2, 2, 3, 5, 5, 6, 6, 6]  # at 0.8 s the earlier of two
    with pytest.raises(DataError, match=r"clip\.mkv: ends after"):
        resampled(path, 0.5, 9, 10.0)


def test_a_place_in_the_middle_is_as_good_as_the_beginning(tmp_path: Path) -> None:
    options = {"g": "20", "preset": "fast"}
    path = encode(tmp_path / "clip.mp4", moving(90), pix_fmt="yuv420p", fps=30, options=options)
    seeks = find_seeks(path)
    assert seeks is not None
    for begin in (0.65, 0.67, 1.33, 1.3501, 2.6):
        whole, from_there = resampled(path, begin, 6, 24.0), resampled(path, begin, 6, 24.0, None, seeks)
        assert all(np.array_equal(a, b) for a, b in zip(whole.frames, from_there.frames, strict=True))
        assert whole.times == from_there.times


@pytest.mark.parametrize(
    "frames, own, rate, windows",
    [(12, 24.0, 24.0, 8), (12, 24.0, 12.0, 4), (12, 24.0, 48.0, 10), (9, 24.0, 12.0, 1), (8, 24.0, 12.0, 0),
     (12, 24000 / 1001, 24000 / 1001, 8), (5, 30.0, 24.0, 0), (6, 30.0, 24.0, 1)],
)  # fmt: skip
def test_how_many_windows_a_clip_has(frames: int, own: float, rate: float, windows: int) -> None:
    data = Data(frames=5, fps=rate)
    assert len(windows_of(ClipInfo(frames, 32, 32, own, frames / own), data)) == windows


def test_a_folder_of_many_rates_is_told_one(tmp_path: Path) -> None:
    data = Data(source="folder", tokenizer="haar", frames=5, height=32, width=32, root=tmp_path, fps=24.0)
    for name, rate, frames in (
        ("a", 12, 8),
        ("b", 24, 12),
        ("c", 30, 16),
        ("d", 60, 40),
        ("e", 24, 4),
        ("g", 24, 9),
    ):
        write_clip(tmp_path / "videos" / f"{name}.mp4", frames, fps=rate)
        write_clip(tmp_path / "depth" / f"{name}.mp4", frames, fps=rate)
        write_text(tmp_path, name)
    encode(tmp_path / "videos" / "f.mkv", moving(12, 32, 64), times=[i * i * 10 for i in range(12)],
           container="matroska", pix_fmt="yuv420p")  # fmt: skip
    encode(tmp_path / "depth" / "f.mkv", moving(12, 32, 64), times=[i * i * 10 for i in range(12)],
           container="matroska", pix_fmt="yuv420p")  # fmt: skip
    write_text(tmp_path, "f")
    source = open_(data, "depth")
    assert source.skipped == {"e": "0.17 s, shorter than 5 frames at 24 a second"}
    batch = source.batch(0, 24)
    assert batch.fps is not None and set(batch.fps.tolist()) == {24.0}
    clips = {name.split("[")[0] for name in batch.names}
    assert clips == {"a", "b", "c", "d", "f"} and "s:" in batch.names[0]
    assert len(source.skipped) == 1  # no window is passed over, of the uneven clip either
    for index in range(12):  # the control is read at the times of the frames that were taken
        sample = source.decoded(index)
        (control,) = sample.controls
        assert control.frames is not None
        assert np.abs(control.frames.astype(int) - sample.video).mean() < 3


def test_what_goes_with_no_rate_is_refused(tmp_path: Path) -> None:
    for settings, said in (
        ({"fps": 24.0, "stride": 2}, "fps and stride 2 both choose frames"),
        ({"fps": 24.0, "source": "film"}, "is for folders of clips"),
        ({"fps": 0.0}, "fps"),
    ):
        with pytest.raises(ValueError, match=said):
            Data(**settings)
    write_clip(tmp_path / "videos" / "a.mp4", 5)
    write_text(tmp_path, "a")
    (tmp_path / "noise").mkdir()
    data = Data(source="folder", tokenizer="haar", frames=5, height=32, width=32, root=tmp_path, fps=24.0)
    with pytest.raises(DataError, match=r"leave data\.fps out"):
        open_(data)
    assert probe(tmp_path / "videos" / "a.mp4").rate == 24.0
