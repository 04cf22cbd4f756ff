"""Several places, shapes and a folder for evaluation, encoded: what is read of the shards is what the clips
themselves give, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file

from cosmos_distill.config import Data, Generate, Guidance, Recipe
from cosmos_distill.data.encoded_files import Encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.selection import Item
from cosmos_distill.data.sources import Source, open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.families import preset
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.run.runner import run_recipe, status
from tests.data import folders, looks
from tests.data.video_files import encode
from tests.run.commands import losses
from tests.stages.encode_recipes import FRAMES, recipe

TEXT = preset("transfer1-smoke")
GROUP = 4
WIDE, STILL = (3, 32, 64), (1, 32, 32)


def write_text(root: Path, name: str, seed: int) -> None:
    (root / "t5_xxl").mkdir(exist_ok=True)
    array = np.random.default_rng(seed).standard_normal((3, TEXT.text_channels)).astype(np.float16)
    save_file({"t5_text_embeddings": array}, str(root / "t5_xxl" / f"{name}.safetensors"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``city``: six clips, one of them no video, one of two shots; ``forest``: five wide clips and two
    photos; ``tests``: three clips. All call their clips alike."""
    root = tmp_path_factory.mktemp("places")
    for place, count, height, width in (("city", 6, 32, 32), ("forest", 5, 32, 64), ("tests", 3, 32, 32)):
        for i in range(count):
            for folder in ("videos", "depth"):
                path = root / place / folder / f"c{i:02d}.mp4"
                folders.write_clip(path, FRAMES, height, width, noise=10 * count + i + 1)
            write_text(root / place, f"c{i:02d}", 10 * count + i)
    (root / "city" / "videos" / "c02.mp4").write_bytes(b"no video")
    for folder in ("videos", "depth"):
        encode(root / "city" / folder / "c01.mp4", list(looks.cut(1, 2, frames=6)))
    for name in ("p0", "p1"):
        for folder in ("videos", "depth"):
            Image.fromarray(looks.picture(len(folder))).save(root / "forest" / folder / f"{name}.png")
        write_text(root / "forest", name, 99)
    return root


def mixture(places: Path) -> dict[str, Any]:
    return {"root": None, "sources": (f"{places}/city=0.7", f"{places}/forest=0.3")}


CASES: dict[str, dict[str, Any]] = {
    "mixture": {},
    "shapes": {"buckets": (WIDE, STILL), "frames": 3, "width": 64},
    "held out": {"held_out": "tests", "cuts": "difference"},
    "all": {"buckets": ((5, 32, 32), WIDE, STILL), "held_out": "tests", "cuts": "difference"},
}


def data_of(places: Path, case: str) -> Data:
    changes = dict(CASES[case])
    if case in ("mixture", "all"):
        changes |= mixture(places)
    elif case == "shapes":
        changes["root"] = places / "forest"
    if "held_out" in changes:
        changes["held_out"] = places / changes["held_out"]
    return dataclasses.replace(recipe(places / "city").data, **changes)


def made(data: Data, kind: str | None = "depth", start: str | None = None, **stage: Any) -> Recipe:
    settings = {"variants": 8, "held_out_variants": 8} | stage
    return dataclasses.replace(recipe(Path(), kind, start=start, **settings), data=data)


def opened(data: Data, control: str | None, split: str, group: int | None) -> Source:
    return open_source(
        data, control, 0, split=split, group=group,  # type: ignore[arg-type]
        text_channels=TEXT.text_channels, text_tokens=TEXT.text_tokens,
    )  # fmt: skip


def same(one: Source, other: Source, steps: int, size: int) -> set[str]:
    names: set[str] = set()
    for step in range(steps):
        a, b = one.batch(step * size, size), other.batch(step * size, size)
        assert a.names == b.names and a.first == b.first
        assert a.tensors().keys() == b.tensors().keys()
        for name, value in a.tensors().items():
            assert torch.equal(value, b.tensors()[name]), name
        names |= set(a.names)
    return names


@pytest.mark.parametrize(
    ("case", "control", "how"),
    [("mixture", None, "latents"), ("shapes", "depth", "latents"), ("held out", "edge", "drawn"),
     ("all", "depth", "latents"), ("all", "vis", "drawn")],
)  # fmt: skip
def test_samples_are_those_of_the_clips_bit_for_bit(
    places: Path, tmp_path: Path, case: str, control: str | None, how: str
) -> None:
    data = data_of(places, case)
    run_recipe(made(data, control, control=how), tmp_path)
    there = dataclasses.replace(
        data, source="shards", root=tmp_path / "encode" / "shards", sources=(), held_out=None, buckets=None,
        cuts=None,
    )  # fmt: skip
    group = GROUP if data.buckets is not None else None
    clips, shards = opened(data, control, "train", group), opened(there, control, "train", group)
    names = same(clips, shards, 12, GROUP)
    assert len(names) > 8 and ("forest/" in "".join(names)) == (case in ("mixture", "all"))
    assert getattr(clips, "seen", lambda n: None)(48) == getattr(shards, "seen", lambda n: None)(48)
    held = opened(data, control, "eval", None), opened(there, control, "eval", None)
    names = same(*held, 2, 4)
    for a, b in zip(held[0].pixels(1, 3), held[1].pixels(1, 3), strict=True):
        assert a is b or torch.equal(a, b)  # type: ignore[arg-type]
    assert clips.latent_shape == shards.latent_shape and held[0].latent_shape == held[1].latent_shape


def test_training_on_shards_is_training_on_the_clips(places: Path, tmp_path: Path) -> None:
    data = data_of(places, "all")
    run_recipe(made(data, start="clips"), tmp_path / "clips")
    whole = made(data, start="shards")
    run_recipe(whole, tmp_path / "shards")
    one, other = (
        load_file(next((tmp_path / n / "train").glob("student*.safetensors"))) for n in ("clips", "shards")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert losses(tmp_path / "clips/train/log.jsonl") == losses(tmp_path / "shards/train/log.jsonl")
    seen = [Manifest.read(tmp_path / n / "train").details["seen"] for n in ("clips", "shards")]  # type: ignore[union-attr]
    assert seen[0] == seen[1]
    assert {state for state, _ in status(whole, tmp_path / "shards").values()} == {"complete"}
    # What was held out counts as what was trained on does.
    moved = tmp_path / "tests"
    shutil.copytree(places / "tests", moved)
    again = dataclasses.replace(whole, data=dataclasses.replace(data, held_out=moved))
    assert {state for state, _ in status(again, tmp_path / "shards").values()} == {"complete"}
    folders.write_clip(moved / "videos" / "c01.mp4", FRAMES, 32, 32, noise=77)
    state, why = status(again, tmp_path / "shards")["encode"]
    assert (state == "mismatch" and "2:c01" in why) or "3:c01" in why


def test_every_clip_is_named_with_its_place(places: Path, tmp_path: Path) -> None:
    run_recipe(made(data_of(places, "all"), clips_per_shard=4), tmp_path)
    found = Encoded(tmp_path / "encode" / "shards")
    assert found.names == (
        *(f"city/c{i:02d}" for i in range(6)),
        *(f"forest/{name}" for name in ("c00", "c01", "c02", "c03", "c04", "p0", "p1")),
        *(f"held_out/c{i:02d}" for i in range(3)),
    )  # fmt: skip
    assert set(found.skipped) == {"city/c02"} and found.split("eval") == [
        f"held_out/c{i:02d}" for i in range(3)
    ]
    assert {name: clip.shape for name, clip in found.samples.items() if name.startswith("forest")} == {
        **{f"forest/c{i:02d}": WIDE for i in range(5)}, "forest/p0": STILL, "forest/p1": STILL,
    }  # fmt: skip
    starts = [*range(4), *range(6, 10)]  # of windows of three frames in two shots of six
    assert found.samples["city/c01"].windows == tuple(f"c01[{at}:{at + 3}]" for at in starts)
    assert json.loads((tmp_path / "encode" / "plan.json").read_text())[0] == [
        "city/c00",
        "train",
        "city",
        "c00",
    ]


def test_a_kill_between_clips_changes_no_byte(places: Path, tmp_path: Path) -> None:
    def shards(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((out / "encode" / "shards").iterdir())}

    one = made(data_of(places, "all"), clips_per_shard=16)
    run_recipe(one, tmp_path)
    whole = shards(tmp_path)
    folder = tmp_path / "encode" / "shards"
    for name in ("encoded.json", "shard-000000.json"):
        (folder / name).unlink()
    content = whole["shard-000000.tar"]
    (folder / "shard-000000.tar").unlink()
    (folder / ".shard-000000.tar.part").write_bytes(content[: len(content) // 2])
    run_recipe(one, tmp_path)
    assert shards(tmp_path) == whole


def test_clips_that_come_meanwhile_change_nothing(places: Path, tmp_path: Path) -> None:
    """Not even where they move others into the other split, or to the end of it."""
    root = tmp_path / "clips"
    shutil.copytree(places / "city", root)
    one = made(dataclasses.replace(data_of(places, "shapes"), root=root, buckets=((5, 32, 32), WIDE)))
    one = dataclasses.replace(one, data=dataclasses.replace(one.data, frames=5, width=32))
    run_recipe(one, tmp_path / "run")
    folder = tmp_path / "run" / "encode" / "shards"
    whole = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    for name in ("shard-000001.tar", "shard-000002.tar", "encoded.json"):
        (folder / name).unlink()
    found = Manifest.read(tmp_path / "run" / "encode")
    assert found is not None
    dataclasses.replace(found, outputs=None).write(tmp_path / "run" / "encode")
    folders.write_clip(root / "videos" / "a.mp4", FRAMES, 32, 32)
    folders.write_clip(root / "depth" / "a.mp4", FRAMES, 32, 32)
    write_text(root, "a", 5)
    for wrong in ("c03", "c04"):  # which is the fifth now, and was
        assert (root / "videos" / f"{wrong}.mp4").exists()
    (tmp_path / "run" / "encode" / "clips.json").unlink()  # as the user is told, where splits move
    run_recipe(one, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == whole


def test_what_cannot_be_is_refused_by_name(places: Path, tmp_path: Path) -> None:
    data = data_of(places, "all")
    drawn = made(data, start="shards")
    pairs = Generate(pairs=2, guidance=Guidance(1.0), steps=1, batch=2, clips_from="encode")
    with pytest.raises(Refusal, match="'pairs' draws clips of one shape, and 'encode' encodes"):
        run_recipe(dataclasses.replace(drawn, stages={**drawn.stages, "pairs": pairs}), tmp_path / "a")
    run_recipe(made(data), tmp_path / "b")
    there = dataclasses.replace(
        data, source="shards", root=tmp_path / "b" / "encode" / "shards", sources=(), held_out=None, cuts=None
    )
    opened(there, "depth", "train", GROUP)  # the shapes that it was encoded in may be said, others not
    with pytest.raises(DataError, match=r"was not encoded with these data\.buckets"):
        opened(dataclasses.replace(there, buckets=(WIDE,)), "depth", "train", GROUP)
    run_recipe(made(data_of(places, "mixture"), None, variants=1), tmp_path / "c")
    without = dataclasses.replace(
        there, root=tmp_path / "c" / "encode" / "shards", buckets=None, cuts="difference"
    )
    with pytest.raises(DataError, match=r"was encoded with data\.cuts None: .*leave it out"):
        opened(without, None, "train", None)


def test_plans_of_before_are_read() -> None:
    old = Item.of_plain(["c00", "eval"])
    assert old == Item("c00", "eval", "", "c00") and old.plain() == ["c00", "eval"]
    one = Item("forest/c00", "train", "forest", "c00")
    assert Item.of_plain(one.plain()) == one
    for wrong in (["a", "b"], ["a"], "ab", [1, 2, 3]):
        with pytest.raises((ValueError, TypeError)):
            Item.of_plain(wrong)
