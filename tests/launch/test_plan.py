"""``cosmos-distill plan``: memory as a step that computes has it, layouts in order, every number in JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cost as pages
from cosmos_distill import cli, diffusion, models
from cosmos_distill.config import Parallel, Train
from cosmos_distill.errors import Refusal
from cosmos_distill.launch.devices import GPUS
from cosmos_distill.launch.live import Live
from cosmos_distill.launch.plan import MODES, disk_bytes, saved_bytes
from cosmos_distill.launch.updates import clip
from cosmos_distill.methods import base
from cosmos_distill.run import planning
from cosmos_distill.run.sizes import latent_shape
from cosmos_distill.train import loop
from cosmos_distill.train.state import TrainState
from tests.launch.measuring import Watching
from tests.run.commands import RECIPE

GIB = 2**30


def recipe(name="transfer1_kd_dmd2", scale="smoke", only=None, **trainer):
    made = pages.load(name).recipe(scale=scale)
    stages = {
        n: replace(s, trainer=replace(s.trainer, **trainer)) if isinstance(s, Train) else s
        for n, s in made.stages.items()
        if only in (None, n)
    }
    return replace(made, stages=stages)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_memory_is_that_of_a_step_on_a_cpu(checkpointing, tmp_path, monkeypatch):
    """Two optimiser steps of two micro-batches by the trainer's loop, everything that lives in them seen; the
    second has moments and gradients before its activations."""
    made = recipe(only="dmd2", max_steps=11, save_every=0, sample_every=0,
                  activation_checkpointing=checkpointing)  # fmt: skip
    stage, latent = made.stages["dmd2"], latent_shape(made.data)
    planned = planning.planner(made, 1, "h100").look(Parallel(), checkpointing).stages["dmd2"].held

    class Clips:
        def batch(self, first, count):
            batch = clip(made.network, latent, count)
            return replace(batch.map(lambda value: torch.randn(value.shape)), first=first)

    def networks(role):
        network = models.build(made.network, seed=0)
        network.activation_checkpointing = checkpointing
        return network

    live, peaks, plain = Live(), [], loop._step

    def step(*args):
        live.begin()  # saving has a copy of everything on this CPU, too
        done = plain(*args)
        peaks.append(live.peak)
        return done

    monkeypatch.setattr(loop, "_step", step)
    with Watching(live):
        method = base.build(stage.method, networks, diffusion.build_schedule(made.schedule))
        for network in method.roles.values():
            live.see(list(network.parameters()))
        result = loop.fit(method, Clips(), stage.trainer, tmp_path, seed=0)
    assert planned.total == pytest.approx(max(peaks), rel=0.10)

    sizes = {role: sum(p.numel() for p in method.roles[role].parameters()) for role in method.trainable}
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    (each,) = saved_bytes(made, {"dmd2": sizes}).values()
    on_disk = sum(path.stat().st_size for path in files)
    assert each == pytest.approx(on_disk, rel=0.10)
    assert TrainState(method, stage.trainer, 0).checkpoint_bytes() == each

    def full(free):
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))
        loop.fit(method, Clips(), stage.trainer, tmp_path, seed=0)

    full(each - on_disk)  # what is there makes room
    with pytest.raises(Refusal, match=r"1 checkpoints of 0\.01 GiB have no room"):
        full(each - on_disk - 1)
    assert disk_bytes(made, {"dmd2": each}) == 2 * each  # it saves once, and might have to again
    assert result.step == 11


def test_layouts_in_order_and_what_is_less_with_more_of_it():
    found = planning.planner(recipe(only="kd"), 4, "h100").search()
    assert len(found) > 1 and all(plan.fits for plan in found)
    assert [plan.seconds for plan in found] == sorted(plan.seconds for plan in found)
    planner = planning.planner(recipe(scale="mini", only="dmd2"), 4, "h100")
    for mode, less in pairwise(MODES):
        one, other = (planner.look(Parallel(), m).stages["dmd2"].held for m in (mode, less))
        assert one.activations > other.activations and one.state == other.state
    whole = planner.look(Parallel(), "none").stages["dmd2"].held
    shared = planner.look(Parallel(data="fsdp"), "none").stages["dmd2"].held
    # Of one data-parallel rank each, which has the same samples.
    alone, split = (
        planning.planner(planner.recipe, gpus, "h100")
        .look(Parallel(context=gpus), "none")
        .stages["dmd2"]
        .held
        for gpus in (1, 2)
    )
    assert shared.state < 0.3 * whole.state and shared.activations == whole.activations
    assert split.activations < 0.7 * alone.activations
    assert shared.total == shared.state + shared.gradients + shared.activations + shared.gathered


def test_faster_and_larger_gpus():
    made = recipe(only="kd")
    hours = {name: planning.planner(made, 1, name).look(Parallel(), "none").seconds for name in GPUS}
    assert hours["b200"] < hours["h200"] < hours["h100"] < hours["a100-80gb"]
    small = planning.planner(made, 2, "h100", memory=1.0)
    assert small.room < GIB and small.own().fits


def test_what_does_not_fit_is_said_with_what_is_nearest():
    planner = planning.planner(recipe(only="kd"), 2, "h100")
    planner.room = 2**20
    (nearest,) = planner.search()
    assert not nearest.fits and nearest.bytes < planner.look(Parallel(), "none").bytes


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    file = tmp_path / "plan.json"
    words = ["plan", str(RECIPE), "--gpus", "2", "--gpu", "h200", "--scale", "smoke", "--json", str(file)]
    assert cli.main(words) == cli.OK
    shown, written = capsys.readouterr().out, json.loads(file.read_text())
    assert "layouts on 2 GPUs, the fastest first" in shown and "assumed, not measured" in shown
    assert shown.count("(chosen)") == 2 and "generate" in shown and "h200: 140 GiB" in shown
    best = written["layouts"][0]
    assert best["fits"] and best["options"] in shown
    memory = best["stages"]["dmd2"]["memory"]
    assert {"student", "teacher", "fake_score", "discriminator"} == set(memory["roles"])
    assert best["seconds"] == pytest.approx(sum(s["seconds"] for s in best["stages"].values()))
    assert best["gpu_hours"] == pytest.approx(best["seconds"] * 2 / 3600)
    assert written["disk_bytes"] > written["checkpoint_bytes"]["dmd2"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h200"], "on how many? Give --gpus as well"),
        (["--gpus", "2", "--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json cannot be written"),
        (["--gpus", "3", "--parallel.tensor", "2"], "no layout is possible on 3 GPUs"),
    ],
)
def test_refusals(words, said, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert cli.main(["plan", str(RECIPE), "--scale", "smoke", *words]) == cli.REFUSED
    assert said in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused(tmp_path, capsys, monkeypatch):
    """Before anything is written; with what fits."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(planning, "device_memory", lambda: 4 * 2**20)
    words = [str(RECIPE), "--scale", "smoke", "--out", str(tmp_path / "run")]
    assert cli.main(words) == cli.REFUSED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "a GPU of 4.0 MiB cannot hold the" in said and "What fits: nothing on so many" in said
    assert not (tmp_path / "run").exists()

    made = recipe()
    need = planning.planner(made, 2, "h100").own().bytes
    planning.refuse_what_does_not_fit(made, ["kd"], 2, need)
    with pytest.raises(Refusal, match=r"(?s)on each of 2. What fits:.*--parallel.*checkpointing"):
        planning.refuse_what_does_not_fit(made, [], 2, need - 1)
