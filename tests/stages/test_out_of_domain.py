"""Clips of another kind than those trained on: scored with the others, and reported by themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from cosmos_distill.config import Data, Evaluate, Guidance, Optim, Recipe, Train, Trainer
from cosmos_distill.errors import Refusal
from cosmos_distill.eval import latency, scores
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.run.manifest import RECORD, Manifest
from cosmos_distill.run.runner import run_recipe, status
from cosmos_distill.stages import evaluate
from cosmos_distill.stages.scoring import Scoreboard
from tests.data.folders import write_clip
from tests.run.commands import SMOKE

NAMES = [f"c{i}" for i in range(4)]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages with fewer repetitions."""
    timed = latency.interleaved
    monkeypatch.setattr(latency, "interleaved", lambda calls, **_: timed(calls, rounds=1))
    monkeypatch.setattr(evaluate, "REFERENCE_CLIPS", (4, 8))
    monkeypatch.setattr(evaluate, "measure_step", lambda *args: None)
    monkeypatch.setattr(scores, "REPLICAS", 2)


def write(root: Path, level: int, names: list[str] = NAMES) -> Path:
    for i, name in enumerate(names):
        write_clip(root / "videos" / f"{name}.mp4", 6, level=level + i)
        (root / "t5_xxl").mkdir(exist_ok=True)
        text = np.random.default_rng(i).standard_normal((4, 64)).astype(np.float32)
        save_file({"t5_text_embeddings": text}, str(root / "t5_xxl" / f"{name}.safetensors"))
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    adam = Optim(lr=1e-3)
    return Recipe(
        network="transfer1-smoke",
        teacher=SMOKE,
        data=Data(
            source="folder", root=write(tmp_path / "clips", 0), tokenizer="haar", frames=5, height=32,
            width=32, out_of_domain=write(tmp_path / "others", 90, ["o0", "o1"]),
        ),
        stages={
            "dmd2": Train(
                method=DMD2(gan_weight=0, student=adam, fake_score=adam),
                trainer=Trainer(max_steps=2, global_batch=2, precision="fp32", sample_every=0),
            ),
            "evaluate": Evaluate(
                clips=2, batch=2, steps=1, guidance=Guidance(0.0), students={"student": "dmd2"}
            ),
        },
    )  # fmt: skip


def go(recipe: Recipe, out: Path) -> None:
    run_recipe(recipe, out, console=Console(quiet=True))


def test_both_are_scored_and_shown(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    found = json.loads((out / "evaluate" / "scores.json").read_text())
    beyond = found["out_of_domain"]
    assert list(beyond["metrics"]) == list(found["metrics"])
    assert beyond["metrics"]["student"]["frechet"] != found["metrics"]["student"]["frechet"]
    details = Manifest.read(out / "evaluate").details
    assert set(details["out_of_domain"]["clips"]) == {"o0", "o1"} and set(details["data"]["clips"]) == {"c3"}
    assert set(Manifest.read(out / "dmd2").details["data"]["clips"]) == {"c0", "c1", "c2"}
    report = json.loads((out / "report.json").read_text())
    assert report["out_of_domain"]["metrics"]["teacher"] == beyond["metrics"]["teacher"]
    page = (out / "report.html").read_text()
    assert page.count("Clips of another domain") == 3  # the table, the picture and what stands for it

    # Without them the held-out clips are scored as they were.
    alone = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, out_of_domain=None))
    assert status(alone, out)["dmd2"][0] == "complete"
    assert "--data.out-of-domain: made with other clips" in status(alone, out)["evaluate"][1]
    go(alone, tmp_path / "alone")
    without = json.loads((tmp_path / "alone" / "evaluate" / "scores.json").read_text())
    assert "out_of_domain" not in without
    assert without["metrics"]["student"] == found["metrics"]["student"]
    assert "another domain" not in (tmp_path / "alone" / "report.html").read_text()


def test_an_interrupted_evaluation_goes_on(recipe: Recipe, tmp_path: Path, monkeypatch) -> None:
    out, keep, stopped = tmp_path / "run", Scoreboard.keep, []

    def stop(board, key, *args):
        if board._folder.parent.name == "out_of_domain" and key == "teacher" and not stopped:
            stopped.append(key)
            raise OSError("no space left")
        keep(board, key, *args)

    monkeypatch.setattr(Scoreboard, "keep", stop)
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "evaluate").glob("**/s*/*-*.safetensors")}
    for folder in ("samples", "scores"):
        assert any("out_of_domain" in str(path) and path.parent.name == folder for path in kept)
    go(recipe, out)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    go(recipe, tmp_path / "whole")
    one, other = (
        json.loads((run / "evaluate" / "scores.json").read_text()) for run in (out, tmp_path / "whole")
    )
    assert one["out_of_domain"] == other["out_of_domain"] and one["metrics"] == other["metrics"]


def test_a_folder_for_evaluation_alone(recipe: Recipe, tmp_path: Path) -> None:
    held = write(tmp_path / "held", 40, ["h0", "h1"])
    data = dataclasses.replace(recipe.data, held_out=held, out_of_domain=None)
    recipe, out = dataclasses.replace(recipe, data=data), tmp_path / "run"
    go(recipe, out)
    used = {
        name: set(json.loads((out / name / RECORD).read_text())["clips"]) for name in ("dmd2", "evaluate")
    }
    assert used == {"dmd2": set(NAMES), "evaluate": {"h0", "h1"}}
    assert set(Manifest.read(out / "evaluate").details["data"]["clips"]) == {"h0", "h1"}
    write_clip(held / "videos" / "h1.mp4", 6, level=99)
    assert status(recipe, out)["dmd2"][0] == "complete"
    assert "h1 (video)" in status(recipe, out)["evaluate"][1]


@pytest.mark.parametrize("name", ["held_out", "out_of_domain"])
def test_a_folder_that_lacks_something_is_refused(recipe: Recipe, tmp_path: Path, name: str) -> None:
    option = f"--data.{name.replace('_', '-')}"
    for place, control in ((tmp_path / "nowhere", "edge"), (tmp_path / "others", "depth")):
        (tmp_path / "clips" / "depth").mkdir(exist_ok=True)
        data = dataclasses.replace(recipe.data, **{"out_of_domain": None, name: place})
        asked = dataclasses.replace(recipe, data=data, control=control)
        said = option if control == "edge" else r"--control depth needs the folder .*others/depth"
        with pytest.raises(Refusal, match=said):
            go(asked, tmp_path / "run")
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(recipe.data, source="film", root=None, **{"out_of_domain": None, name: tmp_path})
