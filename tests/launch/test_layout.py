"""Layouts that cannot work are refused before anything starts, with what to do about it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_distill import cli
from cosmos_distill.config import Parallel, Recipe, Train
from cosmos_distill.launch.layout import launch, problems, smallest_world
from tests.run.commands import ENV, RECIPE


def recipe(parallel: Parallel, network: str = "transfer1-smoke", **trainer: int) -> Recipe:
    made: Recipe = cli.load(RECIPE).recipe(scale="smoke")
    stages = {
        name: dataclasses.replace(stage, trainer=dataclasses.replace(stage.trainer, **trainer))
        if isinstance(stage, Train)
        else stage
        for name, stage in made.stages.items()
    }
    return dataclasses.replace(made, parallel=parallel, network=network, stages=stages)


GOOD = [
    (Parallel(), 1),
    (Parallel(), 2),
    (Parallel(tensor=2, sequence=True), 2),
    (Parallel(context=2), 4),
    (Parallel(pipeline=2), 4),
    (Parallel(data="fsdp", fsdp_shards=2), 2),
    (Parallel(pipeline=2, data="fsdp"), 4),
]


@pytest.mark.parametrize(("parallel", "ranks"), GOOD)
def test_layouts_that_work(parallel: Parallel, ranks: int) -> None:
    assert list(problems(recipe(parallel), ranks)) == []


BAD = {
    "no launcher": (Parallel(context=2), 1, {}, "torchrun --standalone --nproc-per-node 2 -m cosmos_distill"),
    "ranks": (Parallel(tensor=2), 3, {}, "launch a multiple of 2, or choose sizes whose product divides 3"),
    "heads": (Parallel(tensor=4), 4, {}, "does not divide the 2 heads of transfer1-smoke"),
    "ulysses": (Parallel(tensor=2, context=2), 4, {}, "or --parallel.context-attention ring"),
    "blocks": (Parallel(pipeline=4), 4, {}, "choose pipeline x virtual_pipeline at most 2"),
    "batch": (Parallel(), 8, {"global_batch": 12}, "8 data-parallel ranks x micro-batch 4: choose"),
    "shards": (Parallel(data="fsdp", fsdp_shards=3), 2, {}, "choose a divisor of 2"),
}  # fmt: skip


@pytest.mark.parametrize(("parallel", "ranks", "trainer", "advice"), BAD.values(), ids=BAD.keys())
def test_layouts_that_cannot_work(
    parallel: Parallel, ranks: int, trainer: dict[str, int], advice: str
) -> None:
    found = list(problems(recipe(parallel, **trainer), ranks, ["x"]))
    assert found and all(advice in reason for reason in found)


def test_interleaved_pipelines_take_whole_rounds_of_micro_batches() -> None:
    parallel = Parallel(pipeline=2, virtual_pipeline=2)
    reasons = list(problems(recipe(parallel, "transfer1-mini", global_batch=6, micro_batch=2), 2))
    assert len(reasons) == 2 and all("a multiple of 4" in reason for reason in reasons)
    assert list(problems(recipe(parallel, "transfer1-mini", global_batch=8, micro_batch=2), 2)) == []


def test_every_reason_is_named_at_once() -> None:
    parallel = Parallel(tensor=4, pipeline=4)
    assert len(list(problems(recipe(parallel, global_batch=12, micro_batch=4), 32))) == 4


def test_launch_line_of_the_smallest_world(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = Parallel(tensor=4, context=2, pipeline=2)
    assert smallest_world(parallel) == 16
    assert smallest_world(Parallel(context=2, data="fsdp", fsdp_shards=4)) == 4
    assert launch(parallel, ["r.py", "--dry-run"]).startswith("torchrun --nnodes 2 --nproc-per-node 8 ")
    assert launch(Parallel(tensor=4, context=3), ["r.py"]).startswith("12 ranks do not fill nodes of 8 GPUs")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "--nproc-per-node 4 -m cosmos_distill r.py" in launch(Parallel(tensor=2), ["r.py"])


def test_dry_run_shows_a_layout_without_a_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    args = ["--scale", "smoke", "--parallel.tensor", "2", "--parallel.data", "sharded_optimizer"]
    assert cli.main(["plan", str(RECIPE), *args, "--out", str(tmp_path / "run")]) == cli.OK
    shown = capsys.readouterr().out
    assert "memory per GPU, 2 GPUs" in shown and "--nproc-per-node 2" in shown


def test_dry_run_on_a_launched_rank_waits_for_no_other(tmp_path: Path) -> None:
    """Nor does it look for them: there is no address in its environment."""
    command = [sys.executable, "-m", "cosmos_distill", str(RECIPE), "--scale", "smoke", "--dry-run"]
    done = subprocess.run(
        [*command, "--parallel.tensor", "2", "--out", str(tmp_path / "run")],
        env={k: v for k, v in ENV.items() if not k.startswith("MASTER_")} | {"RANK": "0", "WORLD_SIZE": "4"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memory per GPU, 4 GPUs" in done.stdout and "--nproc-per-node 4" in done.stdout
    assert os.listdir(tmp_path) == []
