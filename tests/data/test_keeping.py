"""Thresholds that leave clips out: decided once, by the files alone, named and counted."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from cosmos_distill import cli
from cosmos_distill.config import Data, Keep, KeepClips
from cosmos_distill.data import keeping, measuring
from cosmos_distill.data.clip_stats import ClipStats, Frames
from cosmos_distill.data.clips import ClipInfo
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.keeping import Known
from cosmos_distill.data.survey import Survey, survey
from cosmos_distill.files import read_json
from cosmos_distill.inspection.options import LENIENT
from tests.data import looks
from tests.data.folders import open_, write_folder, write_text
from tests.data.shards import of_folder, write_shard
from tests.data.video_files import encode

GOOD = Frames.of_video(looks.moving(1)).stats()
INFO = ClipInfo(frames=120, height=720, width=1280, rate=24.0, duration=5.0)


def like(**changes: object) -> Known:
    return Known(INFO, dataclasses.replace(GOOD, **changes), words=20)


@pytest.mark.parametrize(
    ("known", "keep", "word", "said"),
    [
        (like(brightness=0.05), KeepClips(min_brightness=0.1), "dark", "brightness 0.050, below 0.1"),
        (like(brightness=0.95), KeepClips(max_brightness=0.9), "bright", "brightness 0.950, above 0.9"),
        (like(contrast=0.01), KeepClips(min_contrast=0.02), "flat", "contrast 0.010, below 0.02"),
        (like(saturated=0.7), KeepClips(max_saturated=0.5), "saturated", "0.700 of its values"),
        (like(motion=0.1), KeepClips(min_motion=0.2), "still", "motion 0.100, below 0.2"),
        (like(motion=80.0), KeepClips(max_motion=50), "restless", "motion 80.000, above 50"),
        (like(repeated=0.6), KeepClips(max_repeated=0.5), "frozen", "0.600 of its frames repeated"),
        (like(blur=0.8), KeepClips(max_blur=0.7), "blurred", "blur 0.800, above 0.7"),
        (like(bars=0.4), KeepClips(max_bars=0.3), "boxed", "0.400 of it black bars"),
        (like(cuts=(3, 9)), KeepClips(max_cuts=1), "cut", "2 cuts, above 1"),
        (like(), KeepClips(min_seconds=6), "short", "5.00 s, below 6"),
        (like(), KeepClips(max_seconds=4), "long", "5.00 s, above 4"),
        (like(), KeepClips(min_side=800), "small", "shorter side of 720 pixels, below 800"),
        (like(), KeepClips(min_fps=25), "slow", "24.00 frames per second, below 25"),
        (like(), KeepClips(min_words=21), "barely described", "caption of 20 words, below 21"),
        (like(), KeepClips(max_words=19), "described at length", "caption of 20 words, above 19"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_threshold_has_its_word(known: Known, keep: KeepClips, word: str, said: str) -> None:
    found = keeping.faults(keep, {"a": known, "b": Known(None, None)})
    assert list(found) == ["a"] and found["a"].word == word
    assert found["a"].reason.startswith(f"{word}: ") and said in found["a"].reason
    (name,) = (name for name, value in vars(keep).items() if value is not None)
    value = keeping.numbers(known)[name.split("_", 1)[1]]
    at_the_bound = dataclasses.replace(keep, **{name: value})
    assert keeping.faults(at_the_bound, {"a": known}) == {}


def test_there_is_a_rule_for_every_threshold() -> None:
    ends = {f"{end}_{rule.name}" for rule in keeping.RULES for end in ("min", "max")}
    assert set(vars(KeepClips())) - ends == {"max_alike"}
    below = {f"min_{rule.name}" for rule in keeping.RULES if rule.below}
    above = {f"max_{rule.name}" for rule in keeping.RULES if rule.above}
    assert below | above == set(vars(KeepClips())) - {"max_alike"}


def test_what_does_not_exist_is_no_fault() -> None:
    stats: ClipStats = Frames.of_video(np.full((1, 8, 8, 3), 90, np.uint8)).stats()
    assert stats.motion is None and stats.blur is None
    assert (
        keeping.faults(KeepClips(min_motion=255, max_blur=0, max_repeated=0), {"a": Known(INFO, stats)}) == {}
    )


def test_of_clips_alike_the_largest_is_kept_and_one_with_another_fault_is_not() -> None:
    small = dataclasses.replace(INFO, height=360, width=640)
    clips = {
        "dark": Known(dataclasses.replace(INFO, height=2160), dataclasses.replace(GOOD, brightness=0.0)),
        "small": Known(small, GOOD),
        "large": Known(INFO, GOOD),
        "again": Known(INFO, GOOD),
        "other": Known(INFO, Frames.of_video(looks.moving(2)).stats()),
    }
    found = keeping.faults(Keep(max_alike=1, min_brightness=0.1), clips)
    assert {name: fault.word for name, fault in found.items()} == {
        "dark": "dark", "small": "duplicate", "again": "duplicate",
    }  # fmt: skip
    assert found["small"].reason == "duplicate: looks like large"
    assert list(keeping.faults(Keep(max_alike=2), clips)) == ["small", "again"]
    assert keeping.said(keeping.counted(f.word for f in found.values())) == "3 clips: 2 duplicate, 1 dark"
    assert keeping.said({}) == "" and keeping.said({"still": 1}, "pair") == "1 pair: 1 still"


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_brightness 0\.9 is above max_brightness 0\.1"):
        KeepClips(min_brightness=0.9, max_brightness=0.1)
    with pytest.raises(ValueError, match=r"keep\.min_motion is of clips in a folder"):
        Data(source="film", keep=KeepClips(min_motion=0.2))
    assert not KeepClips().asks and KeepClips(max_cuts=0).asks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips with text, of which c04 and c09 are held out; c01 is dark, c03 still, c04 a copy of c02."""
    root = tmp_path_factory.mktemp("kept")
    videos = {f"c{i:02d}": looks.moving(i, 12) for i in range(10)}
    videos |= {"c01": looks.dark(1)[:12], "c03": looks.still(3, 12), "c04": videos["c02"]}
    for name, video in videos.items():
        encode(root / "videos" / f"{name}.mp4", list(video))
        write_text(root, name)
    (root / "captions").mkdir()
    for number in range(6):
        (root / "captions" / f"c0{number}.txt").write_text("word " * (number + 1))
    return root


def looked(root: Path, **keep: object) -> Survey:
    data = Data(root=root, tokenizer="haar", frames=5, height=32, width=32, keep=KeepClips(**keep))
    return survey(data, "edge", text_channels=None, latent_shape=None)


def test_clips_are_left_out_named_and_counted(root: Path) -> None:
    everything = looked(root)
    found = looked(root, min_brightness=0.1, min_motion=0.5, max_alike=1)
    assert {name: fault.word for name, fault in found.left_out.items()} == {
        "c01": "dark", "c03": "still", "c04": "duplicate",
    }  # fmt: skip
    assert found.skipped["c01"].startswith("dark: brightness 0.0") and "c01" not in found.samples
    # The others stay where they are: nothing moves between the splits.
    for split in ("train", "eval"):
        assert found.split(split) == everything.split(split)
        left = set(found.left_out)
        assert found.usable(split) == [s for s in everything.usable(split) if s.name not in left]


def test_words_are_those_of_captions(root: Path) -> None:
    found = looked(root, min_words=3)
    assert list(found.left_out) == ["c00", "c01", "c06", "c07", "c08", "c09"]
    assert found.skipped["c06"] == "barely described: caption of 0 words, below 3"


def test_words_of_captions_in_shards_count_as_those_beside_clips(root: Path, tmp_path: Path) -> None:
    samples: dict[str, dict[str, Path | bytes]] = {}
    for name in [f"c{i:02d}" for i in range(10)]:
        samples[name] = dict(of_folder(root, [name])[name])
        text = root / "captions" / f"{name}.txt"
        if text.exists():  # every second one in the other form
            said = text.read_text()
            json_form = {"json": json.dumps({"caption": said}).encode()}
            samples[name] |= json_form if int(name[1:]) % 2 else {"txt": said.encode()}
    samples["c04"] |= {"json": b"not looked at: the text comes first"}
    write_shard(tmp_path / "a.tar", samples)
    data = Data(
        source="shards", root=tmp_path, tokenizer="haar", frames=5, height=32, width=32,
        keep=KeepClips(min_words=3, max_words=4),
    )  # fmt: skip
    found = survey(data, None, text_channels=None, latent_shape=None)
    beside = looked(root, min_words=3, max_words=4)
    assert found.left_out == {f"a/{name}": fault for name, fault in beside.left_out.items()}
    assert found.left_out["a/c05"].word == "described at length"
    assert found.skipped["a/c06"] == "barely described: caption of 0 words, below 3"


def test_a_caption_in_a_shard_that_is_no_text_is_refused_where_words_count(
    root: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "a.tar", {"c00": {**of_folder(root, ["c00"])["c00"], "json": b"{1"}})
    data = Data(
        source="shards", root=tmp_path, tokenizer="haar", frames=5, height=32, width=32,
        keep=KeepClips(min_words=3),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a\.tar/c00\.json is no JSON"):
        survey(data, None, text_channels=None, latent_shape=None)


def test_without_thresholds_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "look", lambda *args: pytest.fail("decoded"))
    monkeypatch.setattr(measuring, "stats", lambda *args: pytest.fail("measured"))
    assert looked(root).left_out == {}
    assert looked(root, min_seconds=0.1, min_side=16, min_fps=1, max_words=50).left_out == {}


def test_nothing_that_is_left_is_said(root: Path) -> None:
    with pytest.raises(DataError, match=r"no usable clip for train.*(?s:.*)c00: still: motion"):
        looked(root, min_motion=250).usable("train")


def test_the_source_says_what_it_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Data(
        root=root, tokenizer="haar", frames=5, height=32, width=32, keep=KeepClips(min_brightness=0.1)
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        source = open_(data)
    assert "left out: 1 clip: 1 dark" in caplog.text and "c01" not in caplog.text
    said = source.description()
    assert said["left_out"] == {"dark": 1} and said["skipped"][0].startswith("c01: dark: brightness")
    assert not any("c01" in source.decoded(index).name for index in range(40))


def test_inspect_judges_by_the_same_numbers(root: Path, tmp_path: Path) -> None:
    keep = {"min_brightness": 0.1, "min_motion": 0.5, "max_alike": 1}
    options = [f"--keep.{name.replace('_', '-')}={value}" for name, value in keep.items()]
    others = [
        f"--keep.{name.replace('_', '-')}=None"
        for name, value in vars(LENIENT).items()
        if value is not None and name not in keep
    ]
    out, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    command = ["inspect", str(root), "--out", str(out), "--json", str(numbers), *options, *others]
    assert cli.main(command) == 0
    said = {clip["name"]: clip["left_out"] for clip in read_json(numbers)["clips"] if clip["left_out"]}
    assert said == {name: fault.reason for name, fault in looked(root, **keep).left_out.items()}


def test_a_clip_without_a_frame_that_can_be_decoded_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, 3, frames=5)
    real = measuring.look

    def look(file: Path, info: ClipInfo) -> Frames:
        if file.name == "c01.mp4":
            raise DataError(f"{file}: no frame of it can be decoded")
        return real(file, info)

    monkeypatch.setattr(measuring, "look", look)
    found = looked(tmp_path, min_brightness=0.0)
    assert {name: fault.word for name, fault in found.left_out.items()} == {"c01": "damaged"}
