"""Several sources in one stream: shares, determinism, and what each brings along."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos_distill.config import Data
from cosmos_distill.config.data import weighted
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.mixture import BLOCK, MixtureSource, Shares
from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.data.sources import open_source
from cosmos_distill.run.checks import wrong_numbers
from tests.data.folders import TEXT, digests, lose, write_clip, write_folder, write_text
from tests.data.shards import write_shard


@pytest.mark.parametrize("weights", [(7.0, 3.0), (1.0, 1.0, 1.0), (1e-9, 5.0), (0.5,)])
def test_every_source_has_its_share(weights: tuple[float, ...]) -> None:
    shares = Shares(weights, 3, "train")
    ends = [0, 1, 1000, BLOCK - 5, BLOCK, BLOCK + 700]
    drawn = [shares.of(index) for index in range(BLOCK + 700)]
    for end in ends:
        counts = Counter(source for source, _ in drawn[:end])
        assert shares.seen(end) == [counts[source] for source in range(len(weights))]
        for source, weight in enumerate(weights):
            # drawn without putting back: no further from the share than a coin would be
            share = weight / sum(weights)
            assert abs(counts[source] - share * end) <= 4 * np.sqrt(share * (1 - share) * end) + 1
    for source in range(len(weights)):
        own = [number for which, number in drawn if which == source]
        assert own == list(range(len(own)))  # no sample of a source is left out or drawn twice


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    weights = (0.2, 0.5, 0.3)
    in_order = Shares(weights, 1, "train")
    expected = [in_order.of(index) for index in range(3 * BLOCK)]
    other = Shares(weights, 1, "train")
    for index in (3 * BLOCK - 1, 5, BLOCK, BLOCK - 1, 2 * BLOCK + 77, 6):
        assert other.of(index) == expected[index]
    for different in (Shares(weights, 2, "train"), Shares(weights, 1, "eval")):
        assert [different.of(index) for index in range(100)] != expected[:100]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    write_folder(tmp_path / "dogs", 6)
    for i in range(4):  # of another rate, with prompts of its own
        write_clip(tmp_path / "cats" / "videos" / f"c{i:02d}.mov", 9, level=200 - i, fps=12)
        write_text(tmp_path / "cats", f"c{i:02d}", tokens=2)
    return Data(
        source="folder", tokenizer="haar", frames=5, height=32, width=32,
        sources=(f"{tmp_path / 'dogs'}=3", str(tmp_path / "cats")),
    )  # fmt: skip


def mixture(data: Data, control: str | None = "edge", seed: int = 0, split: str = "train") -> MixtureSource:
    source = open_source(data, control, seed, split=split, text_channels=TEXT, text_tokens=16)
    assert isinstance(source, MixtureSource)
    return source


def test_samples_are_of_every_source_with_what_belongs_to_it(data: Data) -> None:
    batch = mixture(data).batch(0, 24)
    kinds = [name.split("/")[0] for name in batch.names]
    assert 12 <= kinds.count("dogs") < 24 and mixture(data).seen(24) == Counter(kinds)
    assert batch.fps is not None
    for kind, rate, text in zip(kinds, batch.fps, batch.conditioning.text, strict=True):
        tokens = int((text.abs().sum(-1) > 0).sum())
        assert (rate, tokens == 2) == ((24.0, False) if kind == "dogs" else (12.0, True))
    held_out = mixture(data, split="eval").batch(0, 24)
    clips = {name.split("[")[0] for name in batch.names}
    assert {name.split("[")[0] for name in held_out.names} == {"dogs/c04", "cats/c03"}
    assert clips.isdisjoint({"dogs/c04", "cats/c03"}) and len(clips) == 8


def test_a_source_may_be_shards(data: Data, tmp_path: Path) -> None:
    cats = tmp_path / "cats"
    samples = {
        path.stem: {"mov": path, "t5_xxl.safetensors": cats / "t5_xxl" / f"{path.stem}.safetensors"}
        for path in sorted((cats / "videos").iterdir())
    }
    write_shard(tmp_path / "packed" / "00.tar", samples)
    packed = replace(data, sources=(data.sources[0], str(tmp_path / "packed")))
    assert [part.data.source for part in packed.parts()] == ["folder", "shards"]
    batch = mixture(packed).batch(0, 24)
    for name, rate in zip(batch.names, batch.fps.tolist(), strict=True):
        assert (name.split("/")[0], rate) in (("dogs", 24.0), ("packed", 12.0))
    assert {name.split("/")[0] for name in batch.names} == {"dogs", "packed"}


def test_batching_other_processes_and_order_change_nothing(data: Data) -> None:
    whole = digests(mixture(data).batch(0, 12))
    one_by_one = mixture(data)
    assert [digests(one_by_one.batch(i, 1))[0] for i in reversed(range(12))] == whole[::-1]
    ahead = Prefetch(mixture(data), following=within_share(2, 2), workers=1)
    read = [digests(ahead.batch(first, 2)) for first in (0, 4, 8)]
    ahead.close()
    assert read == [whole[first : first + 2] for first in (0, 4, 8)]
    assert digests(mixture(data, seed=1).batch(0, 12)) != whole


def test_damage_is_learned_by_the_source_that_has_it(data: Data, tmp_path: Path) -> None:
    write_clip(tmp_path / "cats" / "videos" / "c00.mov", 40, noise=1)
    lose(tmp_path / "cats" / "videos" / "c00.mov", 0.3)
    source, worker = mixture(data), pickle.loads(pickle.dumps(mixture(data)))
    source.encoded(0, [worker.decoded(index) for index in range(40)])
    assert list(source.skipped) == ["cats/c00"] and "damaged in places" in source.skipped["cats/c00"]
    assert source.description()["sources"]["dogs"]["skipped"] == []


def test_a_source_without_the_control_is_named(data: Data, tmp_path: Path) -> None:
    for i in range(6):
        write_clip(tmp_path / "dogs" / "depth" / f"c{i:02d}.mp4", 12)
    with pytest.raises(DataError, match=r"cats(.|\n)*depth"):
        mixture(data, control="depth")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sources": ("a=0",)}, "a=0: each is PLACE=WEIGHT with a weight above 0"),
        ({"sources": ("a=-1",)}, "a=-1"),
        ({"sources": ("a=nan",)}, "a=nan"),
        ({"sources": ("a=inf",)}, "a=inf"),
        ({"sources": ("=2",)}, "each is PLACE=WEIGHT"),
        ({"sources": ("a", "./a=2")}, "is there twice"),
        ({"sources": ("a",), "root": Path("b")}, "leave --data.root out"),
        ({"sources": ("a",), "source": "film"}, "leave them out with --data.source film"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="sources") as refused:
        Data(tokenizer="haar", **settings)
    assert said in str(refused.value)


def test_places_may_hold_the_sign() -> None:
    assert weighted("runs/lr=3e-4=2") == ("runs/lr=3e-4", 2.0)
    assert weighted("a=b") == ("a=b", 1.0) and weighted("a") == ("a", 1.0)
    assert not list(wrong_numbers(Data(sources=("x/clips=2", "y/clips=1"))))
    names = [part.name for part in Data(sources=("x/clips=2", "y/clips", "z/cats")).parts()]
    assert names == ["x/clips", "y/clips", "cats"]
