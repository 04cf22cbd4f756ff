"""Clips of several shapes in one run: every global batch is of one, under every layout."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from cosmos_distill.config import Data, Optim, Recipe, Train, Trainer
from cosmos_distill.data.buckets import BucketSource
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.data.sources import open_source
from cosmos_distill.data.video import ClipInfo
from cosmos_distill.data.windows import shape_of
from cosmos_distill.errors import Refusal
from cosmos_distill.methods.base import draw_given_frames
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.randomness import Noise
from cosmos_distill.run.checks import check
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.run.runner import run_recipe
from tests.data.folders import digests, write_clip
from tests.run.commands import SMOKE

GROUP = 4
WIDE, TALL, STILL = (5, 32, 64), (5, 64, 32), (1, 32, 32)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Six wide clips, three tall ones and four of one frame; the fifth and the tenth are held out."""
    root = tmp_path / "clips"
    for i in range(13):
        frames, height, width = (9, 32, 64) if i < 6 else (9, 64, 32) if i < 9 else (1, 36, 36)
        write_clip(root / "videos" / f"c{i:02d}.mp4", frames, height, width, level=10 * i)
        (root / "t5_xxl").mkdir(exist_ok=True)
        text = np.random.default_rng(i).standard_normal((4, 64)).astype(np.float32)
        save_file({"t5_text_embeddings": text}, str(root / "t5_xxl" / f"c{i:02d}.safetensors"))
    return Data(
        source="folder", root=root, tokenizer="haar", frames=5, height=32, width=32,
        max_condition_frames=0, buckets=(WIDE, TALL, STILL),
    )  # fmt: skip


def opened(data: Data, seed: int = 0, group: int = GROUP) -> BucketSource:
    source = open_source(data, "edge", seed, text_channels=64, text_tokens=16, group=group)
    assert isinstance(source, BucketSource)
    return source


def name_of(sample: str) -> str:
    return sample.split("[")[0]


def test_a_global_batch_is_of_one_shape(data: Data) -> None:
    source, shapes = opened(data), Counter[tuple[int, ...]]()
    clips: dict[tuple[int, ...], set[str]] = {}
    for step in range(24):
        batch = source.batch(GROUP * step, GROUP)
        assert len(batch) == GROUP and batch.conditioning.hint is not None
        assert batch.conditioning.hint.shape == batch.latents.shape
        assert batch.conditioning.padding_mask is not None
        assert batch.conditioning.padding_mask.shape[-2:] == batch.latents.shape[-2:]
        shape = tuple(batch.latents.shape[2:])
        shapes[shape] += GROUP
        clips.setdefault(shape, set()).update(map(name_of, batch.names))
    wide, tall, still = sorted(shapes, key=lambda shape: (-shape[0], shape[1]))
    assert (wide[2], tall[1], still[0]) == (2 * wide[1], 2 * tall[2], 1)
    assert clips[wide] == {"c00", "c01", "c02", "c03", "c05"}
    assert clips[tall] == {"c06", "c07", "c08"} and clips[still] == {"c10", "c11", "c12"}
    seen = source.seen(24 * GROUP)
    assert seen == {"5x32x64": shapes[wide], "5x64x32": shapes[tall], "1x32x32": shapes[still]}
    assert seen["5x32x64"] > seen["1x32x32"]  # five clips of eleven, and three


def test_every_layout_sees_the_same(data: Data) -> None:
    whole = [one for step in range(6) for one in digests(opened(data).batch(GROUP * step, GROUP))]
    alone = opened(data)
    assert [digests(alone.batch(i, 1))[0] for i in reversed(range(24))] == whole[::-1]
    for rank in range(2):  # two data-parallel ranks, a micro-batch of one
        ahead = Prefetch(opened(data), following=within_share(2, 2), workers=1)
        for first in (2 * rank + 4 * step + i for step in range(6) for i in range(2)):
            assert digests(ahead.batch(first, 1)) == whole[first : first + 1]
        ahead.close()
    with pytest.raises(ValueError, match="two global batches"):
        opened(data).batch(2, 4)
    assert digests(opened(data, seed=1).batch(0, 4)) != whole[:4]


@pytest.mark.parametrize(
    "info, shape",
    [
        (ClipInfo(9, 720, 1280, 24.0, 9 / 24), WIDE),
        (ClipInfo(9, 1280, 720, 24.0, 9 / 24), TALL),
        (ClipInfo(9, 100, 100, 24.0, 9 / 24), STILL),
        (ClipInfo(4, 720, 1280, 24.0, 4 / 24), STILL),  # too short for the others
    ],
)
def test_which_shape_a_clip_is_of(info: ClipInfo, shape: tuple[int, int, int]) -> None:
    found = shape_of(info, Data(buckets=(WIDE, TALL, STILL)))
    assert found is not None and (found.frames, found.height, found.width) == shape
    longest = shape_of(info, Data(buckets=((1, 32, 64), (3, 32, 64), (2, 32, 64))))
    assert longest is not None and longest.frames == 3
    assert shape_of(info, Data(buckets=((99, 32, 64),))) is None


def test_with_sources_every_shape_has_those_that_have_it(data: Data, tmp_path: Path) -> None:
    assert data.root is not None
    stills = tmp_path / "stills"
    for i in range(5):
        write_clip(stills / "videos" / f"s{i}.mp4", 1, 36, 36, level=20 * i)
        (stills / "t5_xxl").mkdir(exist_ok=True)
        text = np.ones((2, 64), np.float32)
        save_file({"t5_text_embeddings": text}, str(stills / "t5_xxl" / f"s{i}.safetensors"))
    both = dataclasses.replace(data, root=None, sources=(f"{data.root}=1", f"{stills}=1"))
    source = opened(both)
    names = Counter(
        name.split("/")[0] for step in range(30) for name in source.batch(GROUP * step, GROUP).names
    )
    assert 40 < names["stills"] < 80 and names["stills"] + names["clips"] == 120
    assert set(source.seen(120)) == {
        "5x32x64 clips", "5x64x32 clips", "1x32x32 clips", "1x32x32 stills",
    }  # fmt: skip
    assert source.seen(120)["1x32x32 stills"] == names["stills"]


def recipe_of(data: Data) -> Recipe:
    adam = Optim(lr=1e-3)
    return Recipe(
        network="transfer1-smoke",
        teacher=SMOKE,
        data=data,
        stages={
            "dmd2": Train(
                method=DMD2(gan_weight=0, student=adam, fake_score=adam, condition_frames=(1.0,)),
                trainer=Trainer(max_steps=8, global_batch=2, precision="fp32", sample_every=0),
            ),
        },
    )


def test_training_goes_through_all_shapes(data: Data, tmp_path: Path) -> None:
    micro, whole = tmp_path / "micro", tmp_path / "whole"
    recipe = recipe_of(data)
    run_recipe(recipe, micro, console=Console(quiet=True))
    seen = Manifest.read(micro / "dmd2").details["seen"]
    assert len(seen) == 3 and all(one["samples"] for one in seen.values())
    assert sum(one["samples"] for one in seen.values()) == 16
    stage = recipe.stages["dmd2"]
    trainer = dataclasses.replace(stage.trainer, micro_batch=2)
    recipe = dataclasses.replace(recipe, stages={"dmd2": dataclasses.replace(stage, trainer=trainer)})
    run_recipe(recipe, whole, console=Console(quiet=True))
    ends = [load_file(run / "dmd2" / "student.safetensors") for run in (micro, whole)]
    for name, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][name], rtol=1e-4, atol=1e-5)


def giving(recipe: Recipe, *probabilities: float) -> Recipe:
    stage = recipe.stages["dmd2"]
    assert isinstance(stage, Train)
    method = dataclasses.replace(stage.method, condition_frames=probabilities)
    return dataclasses.replace(recipe, stages={"dmd2": dataclasses.replace(stage, method=method)})


def test_given_frames_leave_something_of_every_shape(data: Data, tmp_path: Path) -> None:
    """A shape of one latent frame has none given; one of two could have both given, which is refused."""
    check(giving(recipe_of(data), 0.5, 0.5), tmp_path / "run")
    two = dataclasses.replace(data, buckets=(WIDE, (3, 32, 32)))
    with pytest.raises(Refusal, match=r"--data\.buckets 3 32 32: .*condition-frames"):
        check(giving(recipe_of(two), 0.4, 0.3, 0.3), tmp_path / "run")


def test_clips_of_one_latent_frame_have_none_given(data: Data) -> None:
    source, given = opened(data), dict[int, set[int]]()
    for step in range(12):
        batch = source.batch(GROUP * step, GROUP)
        conditioning = draw_given_frames(batch, Noise(0, step, GROUP * step, GROUP), (0, 1))
        mask = conditioning.given_mask(batch.latents.shape[2])
        counts = [0] * GROUP if mask is None else mask.flatten(1).sum(1).tolist()
        given.setdefault(batch.latents.shape[2], set()).update(counts)
    assert given == {1: {0}, 3: {1}}


@pytest.mark.parametrize(
    "buckets, said",
    [
        (((6, 32, 32),), "--data.buckets 6 32 32: --data.frames 6"),
        (((5, 32, 33),), "--data.buckets 5 32 33: --data.width 33 is not a multiple"),
        (((5, 32, 32), (5, 4096, 32)), "--data.buckets 5 4096 32: --data.height 4096"),
    ],
)
def test_a_shape_that_does_not_suit_is_refused(data: Data, tmp_path: Path, buckets, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        check(recipe_of(dataclasses.replace(data, buckets=buckets)), tmp_path / "run")
    assert said in str(refused.value) and "5 32 32:" not in str(refused.value)


def test_a_shape_without_clips_is_refused(data: Data) -> None:
    with pytest.raises(DataError, match=r"is of the shape 9x16x96: leave it out of data\.buckets"):
        opened(dataclasses.replace(data, buckets=(WIDE, (9, 16, 96))))
    for wrong in ((), (WIDE, WIDE)):
        with pytest.raises(ValueError, match="buckets"):
            dataclasses.replace(data, buckets=wrong)
    with pytest.raises(ValueError, match="buckets"):
        Data(source="film", buckets=(WIDE,))
