"""Photos as clips of one frame: in folders, shards, mixtures and shapes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmos_distill import cli
from cosmos_distill.config import Data, Evaluate, Guidance, KeepClips, Recipe
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.buckets import BucketSource
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.photos import UNASKED
from cosmos_distill.data.sources import open_source
from cosmos_distill.data.survey import survey
from cosmos_distill.data.video import at_times, probe, resampled, window
from cosmos_distill.errors import Refusal
from cosmos_distill.run import inputs
from tests.data import looks
from tests.data.folders import TEXT, digests, open_, write_text
from tests.data.shards import write_shard
from tests.data.video_files import encode

PHOTOS = {"a2": ".png", "a3": ".jpg", "b0": ".JPEG", "b1": ".webp", "b2": ".png", "b3": ".png"}
SHAPES = ((5, 32, 32), (1, 32, 32))


def photo(path: Path, seed: int, kind: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(looks.picture(seed)).save(path, kind, **options)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips and six photos, of which the fifth, a clip, is held out."""
    root = tmp_path_factory.mktemp("photos")
    for name, seed in (("a0", 0), ("a1", 1), ("a4", 2)):
        encode(root / "videos" / f"{name}.mp4", list(looks.moving(seed, 7)))
        encode(root / "depth" / f"{name}.mp4", list(looks.moving(seed + 20, 7)))
    for number, (name, suffix) in enumerate(PHOTOS.items()):
        photo(root / "videos" / f"{name}{suffix}", 10 + number)
        photo(root / "depth" / f"{name}.png", 30 + number)
    photo(root / "videos" / "a0.jpg", 99)  # a picture of a clip, beside it
    for name in ("a0", "a1", "a4", *PHOTOS):
        write_text(root, name, tokens=5)
    return root


@pytest.fixture
def data(root: Path) -> Data:
    return Data(root=root, tokenizer="haar", frames=5, height=32, width=32, buckets=SHAPES)


def mixed(data: Data, split: str = "train", group: int | None = 2):
    return open_source(data, "depth", 0, split=split, text_channels=TEXT, text_tokens=16, group=group)


def test_photos_train_in_batches_of_their_own(data: Data, root: Path) -> None:
    source, seen = mixed(data), dict[int, set[str]]()
    for step in range(24):
        batch: Batch = source.batch(2 * step, 2)
        seen.setdefault(batch.latents.shape[2], set()).update(name.split("[")[0] for name in batch.names)
        assert batch.conditioning.hint is not None
        assert batch.conditioning.hint.shape == batch.latents.shape
    assert seen == {3: {"a0", "a1"}, 1: set(PHOTOS)}
    assert source.skipped == {"a0.jpg": "has the name of a0.mp4, which is taken: give it another"}


def test_a_photo_is_what_a_video_of_it_is(root: Path, tmp_path: Path) -> None:
    """Stored without loss: the same sample, latents, control and prompt."""
    image = np.asarray(Image.open(root / "videos" / "b2.png"))
    hint = np.asarray(Image.open(root / "depth" / "b2.png"))
    for name, container in (("x", "matroska"), ("y", "matroska")):
        for folder, frame in (("videos", image), ("depth", hint)):
            encode(
                tmp_path / folder / f"{name}.mkv", [frame], codec="ffv1", pix_fmt="bgr0", container=container
            )
            photo_of = tmp_path / "photos" / folder / f"{name}.png"
            photo_of.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(photo_of)
        write_text(tmp_path, name)
        write_text(tmp_path / "photos", name)
    found = [
        digests(open_(Data(root=place, tokenizer="haar", frames=1, height=32, width=32), "depth").batch(0, 2))
        for place in (tmp_path, tmp_path / "photos")
    ]
    assert found[0] == found[1]


def test_what_is_held_out_is_the_same_whoever_asks(data: Data) -> None:
    train, held = mixed(data), mixed(data, "eval", group=None)
    assert isinstance(held, FolderSource) and isinstance(train, BucketSource)
    (splits,) = {tuple(part.splits().items()) for part in train._parts}
    assert tuple(held.splits().items()) == splits
    assert [name for name, split in splits if split == "eval"] == ["a4"]


def test_photos_alone_cannot_be_scored_and_this_is_said_first(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        photo(tmp_path / "videos" / f"p{number}.jpg", number)
        write_text(tmp_path, f"p{number}", tokens=5)
    held = dataclasses.replace(data, held_out=tmp_path)
    said = "no usable clip for eval has the 5 frames that are drawn and scored"
    with pytest.raises(DataError, match=said):
        open_source(held, None, 0, split="eval", text_channels=TEXT, text_tokens=16)
    stage = Evaluate(clips=2, steps=1, guidance=Guidance(0.0), students={})
    recipe = Recipe(network="transfer1-smoke", data=held, stages={"evaluate": stage}, control=None)
    monkeypatch.setattr(inputs, "denoiser", lambda recipe: None)  # whose text is wider than that of these
    with pytest.raises(Refusal, match=said):
        inputs.look(recipe)


def test_without_a_shape_of_one_frame_photos_are_left_alone(data: Data) -> None:
    plain = dataclasses.replace(data, buckets=None)
    found = survey(plain, None, text_channels=None, latent_shape=None)
    assert found.names == ("a0", "a1", "a4") and found.skipped["b2.png"] == UNASKED
    assert found.held_out == {"a4"}  # the last of fewer than five


def test_captions_belong_to_photos(root: Path, tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "videos" / f"p{number}.jpg", number)
    (tmp_path / "captions.csv").write_text("file_name,caption\np0.jpg,one\nvideos/p1.jpg,one two\n")
    (tmp_path / "videos" / "p2.txt").write_text("one two three")
    for name in ("p0", "p1", "p2"):
        write_text(tmp_path, name)
    data = Data(root=tmp_path, tokenizer="haar", frames=1, height=32, width=32,
                keep=KeepClips(min_words=2, min_seconds=1, min_fps=20))  # fmt: skip
    found = survey(data, None, text_channels=None, latent_shape=None)
    assert {name: fault.word for name, fault in found.left_out.items()} == {"p0": "barely described"}


def test_photos_in_shards_are_those_of_a_folder(data: Data, root: Path, tmp_path: Path) -> None:
    samples = {}
    for path in sorted((root / "videos").iterdir()):
        if path.name != "a0.jpg":
            depth = next((root / "depth").glob(f"{path.stem}.*"))
            samples[path.stem] = {
                path.suffix[1:].lower(): path, f"depth{depth.suffix}": depth,
                "t5_xxl.safetensors": root / "t5_xxl" / f"{path.stem}.safetensors",
            }  # fmt: skip
    samples["a0"]["jpg"] = root / "videos" / "a0.jpg"
    write_shard(tmp_path / "s.tar", samples | {"t": {"txt": b"nothing"}})
    there = dataclasses.replace(data, source="shards", root=tmp_path)
    ours, theirs = mixed(data), mixed(there)
    for first in (0, 2, 4, 6):
        one, other = ours.batch(first, 2), theirs.batch(first, 2)
        assert other.names == tuple(f"s/{name}" for name in one.names)
        assert np.array_equal(one.latents, other.latents)
        assert np.array_equal(one.conditioning.hint, other.conditioning.hint)
    plain = survey(dataclasses.replace(there, buckets=None), None, text_channels=None, latent_shape=None)
    assert plain.skipped == {"s/t": "has no video", **{f"s/{name}": UNASKED for name in PHOTOS}}


def test_a_folder_of_photos_alone_is_one_source_of_several(data: Data, root: Path, tmp_path: Path) -> None:
    for number in range(4):
        photo(tmp_path / "stills" / "videos" / f"p{number}.jpg", number)
        photo(tmp_path / "stills" / "depth" / f"p{number}.png", number)
        write_text(tmp_path / "stills", f"p{number}", tokens=5)
    for number in range(6):
        encode(tmp_path / "films" / "videos" / f"c{number}.mp4", list(looks.moving(number, 7)))
        encode(tmp_path / "films" / "depth" / f"c{number}.mp4", list(looks.moving(number, 7)))
        write_text(tmp_path / "films", f"c{number}", tokens=5)
    both = dataclasses.replace(data, root=None, sources=(f"{tmp_path}/films=0.5", f"{tmp_path}/stills=0.5"))
    seen = mixed(both).seen(400)
    assert set(seen) == {"5x32x32 films", "1x32x32 stills"} and 150 < seen["1x32x32 stills"] < 250
    held = mixed(both, "eval", group=None)
    assert {name.split("[")[0] for name in held.batch(0, 4).names} == {"films/c4"}


def test_what_is_no_photo_is_skipped_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    photo(folder / "good.png", 1)
    photo(folder / "good2.png", 2)
    frames = [Image.fromarray(looks.picture(seed)) for seed in (1, 2)]
    frames[0].save(folder / "moves.webp", save_all=True, append_images=frames[1:])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    whole = photo(folder / "cut.jpg", 3).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for path in sorted(folder.iterdir()):
        write_text(tmp_path, path.stem)
    data = Data(root=tmp_path, tokenizer="haar", frames=1, height=32, width=32)
    found = survey(data, None, text_channels=None, latent_shape=None)
    assert set(found.samples) == {"good", "good2"} and len(found.skipped) == 4
    assert "animated" in found.skipped["moves"] and "cannot be decoded" in found.skipped["text"]
    assert "is empty" in found.skipped["empty"] and "damaged or cut off" in found.skipped["cut"]


def test_a_photo_is_turned_as_a_viewer_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photo(tmp_path / "a.jpg", 1, exif=exif)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.photo) == (1, 96, 64, True)
    frames, rate, times = window(path, range(0, 1))
    assert frames[0].shape == (96, 64, 3) and (rate, times) == (24.0, (0.0,))
    assert resampled(path, 0.0, 1, 30.0).rate == 30.0 and len(at_times(path, [0.0])) == 1
    with pytest.raises(DataError, match=r"is a photo, and a frame at 0\.042 s is needed"):
        window(path, range(0, 2))


def test_inspect_shows_photos(root: Path, tmp_path: Path) -> None:
    for place, count in ((root, 9), (root / "videos", 9)):  # the layout, and any folder
        numbers = tmp_path / "numbers.json"
        out = ["--out", str(tmp_path / "page.html"), "--json", str(numbers), "--cuts", "difference"]
        assert cli.main(["inspect", str(place), *out, "--keep.min-seconds", "0.1"]) == 0
        clips = {clip["name"]: clip for clip in json.loads(numbers.read_text())["clips"]}
        assert len(clips) == count and clips["b0"]["seconds"] is None and clips["b0"]["left_out"] is None
        assert clips["b0"]["cuts"] == [] and clips["b0"]["motion"] is None and clips["b0"]["blur"] > 0
    page = (tmp_path / "page.html").read_text()
    assert "photo" in page and page.count("data:image/jpeg") >= 9
