"""Several controls of one run from videos beside the clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_distill.config import Data
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.sources import open_source
from tests.data.folders import TEXT, digests, lose, open_, write_clip, write_folder, write_noise
from tests.data.shards import of_folder, write_shard

BOTH = "depth:0.5,seg:0.5"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with depth and segments, a fifth for evaluation, and one that has no segments."""
    folder = tmp_path_factory.mktemp("two controls")
    write_folder(folder, 6, control="depth")
    for number in range(5):
        write_clip(folder / "seg" / f"c{number:02d}.mp4", 12, level=100, noise=number + 1)
    return folder


@pytest.fixture
def data(mini: Data, root: Path) -> Data:
    return replace(mini, source="folder", root=root, stride=1)


def drawn(names: tuple[str, ...]) -> list[str]:
    """Which control every sample has."""
    return [name.rsplit("(", 1)[1].rstrip(")") for name in names]


def test_a_sample_has_one_of_them_as_if_it_were_the_only_one(data: Data, root: Path) -> None:
    source = open_(data, BOTH)
    batch = source.batch(0, 12)
    alone = {name: digests(open_(replace(data, root=root), name).batch(0, 12)) for name in ("depth", "seg")}
    assert set(drawn(batch.names)) == {"depth", "seg"}
    assert source.skipped == {"c05": "has no seg/c05.mp4"}
    plain = [name.rsplit(" (", 1)[0] for name in batch.names]
    others = open_(data, "depth").batch(0, 12).names
    usable = [n for n, name in enumerate(others) if not name.startswith("c05")]
    assert len(usable) > 8
    for n in usable:
        found = digests(replace(batch, names=tuple(plain)))[n]
        assert found == alone[drawn(batch.names)[n]][n]


def test_several_branches_have_all_of_them(data: Data) -> None:
    def hint(control: str, branches: int) -> torch.Tensor:
        source = open_source(data, control, 0, text_channels=TEXT, text_tokens=16, branches=branches)
        found = source.batch(0, 6).conditioning.hint
        assert found is not None
        return found

    depth, seg = hint("depth:1,seg:0.5", 2).chunk(2, dim=1)
    assert torch.equal(seg, hint("seg:1,depth:1", 2).chunk(2, dim=1)[0])
    assert not torch.equal(depth, seg) and depth.any() and seg.any()


def test_shards_hold_them_as_a_folder_does(data: Data, root: Path, tmp_path: Path) -> None:
    samples = of_folder(root, [f"c{number:02d}" for number in range(6)], "depth")
    for name, parts in samples.items():
        if (segments := root / "seg" / f"{name}.mp4").is_file():
            parts["seg.mp4"] = segments
    write_shard(tmp_path / "a.tar", samples)
    there = open_(replace(data, source="shards", root=tmp_path), BOTH).batch(0, 8)
    here = open_(data, BOTH).batch(0, 8)
    assert [name.removeprefix("a/") for name in there.names] == list(here.names)
    assert digests(replace(there, names=here.names)) == digests(here)


def test_damage_of_one_passes_over_no_sample_of_the_other(mini: Data, tmp_path: Path) -> None:
    """Whatever was read before, and by whom."""
    write_folder(tmp_path, 3, frames=30, control="depth")
    for number in range(3):
        write_clip(tmp_path / "seg" / f"c{number:02d}.mp4", 30, noise=number + 1)
    lose(tmp_path / "depth" / "c00.mp4", 0.2)
    data = replace(mini, source="folder", root=tmp_path, stride=1)
    source = open_(data, BOTH)
    through = source.batch(0, 24)
    assert "c00" in source.skipped
    assert [digests(open_(data, BOTH).batch(n, 1))[0] for n in range(24)] == digests(through)
    behind = [n for n in through.names if n.startswith("c00") and int(n[4:].split(":")[0]) > 8]
    assert behind and set(drawn(tuple(behind))) == {"seg"}
    other = open_(data, BOTH)
    for n in range(24):  # another process hands on what it met
        other.learn(source.decoded(n))
        other.learn(open_(data, BOTH).decoded(n))
    assert digests(other.batch(0, 24)) == digests(through)


def test_hashes_tell_them_apart(data: Data) -> None:
    both, one = open_(data, BOTH).hashes("c00"), open_(data, "depth").hashes("c00")
    assert set(both) == {"video", "text", "control depth", "control seg"}
    assert set(one) == {"video", "text", "control"} and one["control"] == both["control depth"]


def test_clips_of_a_teacher_have_the_control_that_it_saw(mini: Data, tmp_path: Path) -> None:
    for video in write_folder(tmp_path, 3, frames=5, control="depth"):
        write_clip(tmp_path / "seg" / video.name, 5)
        write_noise(tmp_path, video.stem)
    data = replace(mini, source="folder", root=tmp_path, stride=1)
    with pytest.raises(DataError, match="were drawn with one control each: choose depth or seg"):
        open_(data, BOTH)
    assert len(open_(data, "seg").batch(0, 2)) == 2
    several = open_source(data, BOTH, 0, text_channels=TEXT, text_tokens=16, branches=2)
    assert isinstance(several, FolderSource) and several.batch(0, 2).noise is not None
