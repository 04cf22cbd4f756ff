"""How many networks a stage holds while it draws, and in which precision."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_distill import cli, models
from cosmos_distill.config import Parallel, Train
from cosmos_distill.data.batch import Batch
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.run import networks
from cosmos_distill.sampling.candidates import Candidate
from cosmos_distill.stages import evaluate, grids, scoring
from cosmos_distill.stages.scoring import Scoreboard, Task
from cosmos_distill.tokenizers.haar import Haar
from tests.train.fakes import ToySource

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, tuple[Path, ...]]:
    """A recipe at its smallest, and a teacher of it."""
    recipe = cli.load(ROOT / "recipes" / "transfer1_kd_dmd2.py").recipe(scale="smoke")
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(models.build(recipe.network, seed=0).state_dict(), path)
    return recipe, (path,)


def test_evaluation_holds_no_network_but_the_one_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[nn.Module]] = []

    def load(*_: Any) -> nn.Module:
        gc.collect()
        assert all(network() is None for network in loaded), "an earlier candidate's is still there"
        loaded.append(weakref.ref(network := nn.Linear(2, 2)))
        return network

    def draw(network: Any, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
        return batch.latents.clone()

    monkeypatch.setattr(evaluate, "load_to_draw", load)
    source: Any = SimpleNamespace(batch=ToySource().batch)
    bar: Any = SimpleNamespace(advance=lambda: None, together=lambda: None)
    recipe: Any = SimpleNamespace(seed=0, parallel=Parallel())
    stage: Any = SimpleNamespace(batch=2, metrics=None, precision="fp32")
    for missing in ([(0, 2), (2, 1)], [], [(2, 1)]):
        who = Candidate(draw, (), 1, "somebody")
        made = list(evaluate._draw(who, missing, source, stage, recipe, bar))
        assert [(first, len(latents)) for first, latents in made] == missing
    assert len(loaded) == 2  # and none where nothing is missing


def test_grids_draw_with_a_teacher_like_the_networks_in_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = cli.load(ROOT / "recipes" / "transfer1_kd_dmd2.py").recipe(scale="smoke")
    stage = recipe.stages["kd"]
    assert isinstance(stage, Train)
    asked = replace(stage.trainer, precision="bf16", activation_checkpointing="full", micro_batch=2)
    stage = replace(stage, trainer=asked)
    used: list[torch.dtype] = []

    def sample(network: nn.Module, levels: Any, batch: Batch, *_: Any) -> Tensor:
        used.append(next(network.parameters()).dtype)
        return batch.latents.clone()

    monkeypatch.setattr(grids, "few_steps", sample)
    monkeypatch.setattr(grids, "many_steps", sample)
    pictures: list[dict[str, Tensor]] = []
    monkeypatch.setattr(grids, "grid", lambda rows, path: pictures.append(rows))
    of_role = networks.by_role(recipe, None, stage.trainer)
    student = of_role("student")
    assert (student.activation_checkpointing, student.micro_batch) == ("full", 2)
    method: Any = SimpleNamespace(roles={"student": student})
    grids.sampler_grid(method, of_role, stage, recipe, tmp_path)(0)
    assert used == [torch.bfloat16] * 3  # the teacher's two, and the student's
    again = grids.sampler_grid(method, of_role, stage, recipe, tmp_path)
    again(1)
    again(2)
    assert len(used) == 5  # a stage that goes on draws the student's only
    assert all(list(rows) == list(pictures[0]) for rows in pictures)
    assert all(torch.equal(pictures[0][label], pictures[2][label]) for label in pictures[0])
    other = replace(recipe, seed=1)
    grids.sampler_grid(method, of_role, stage, other, tmp_path)(3)
    assert len(used) == 8


@pytest.mark.parametrize("control", ["edge", None])
def test_clips_that_are_not_finite_have_no_scores_and_a_reason(
    control: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.randint(0, 255, (2, 3, 5, 32, 32), dtype=torch.uint8)
    clips: Any = SimpleNamespace(
        decode=Haar().decode,
        pixels=lambda first, count: (clip, None),
        batch=lambda first, count: SimpleNamespace(first=first, latents=torch.zeros(2, 16, 3, 8, 8)),
    )
    recipe: Any = SimpleNamespace(control=control)
    stage: Any = SimpleNamespace(condition_frames=(0,), metrics=None, networks=None)
    monkeypatch.setattr(scoring.drawn_by, "given_frames", lambda *_: None)
    board = Scoreboard(tmp_path, {})
    tasks = board.missing([(0, 2), (2, 2)], ["student"], lambda *_: "drawn")
    values = {0: 0.0, 2: torch.nan}

    def latents(key: str, first: int) -> tuple[Tensor, str]:
        return torch.full((2, 16, 3, 8, 8), values[first]), "drawn"

    measured = partial(scoring.of_batch, clips, stage, recipe, ())
    scoring.measure_missing(board, tasks, latents, measured, lambda: None)
    assert board.missing([(0, 2), (2, 2)], ["student"], lambda *_: "drawn") == []
    found = scoring.clips_of([board.of("student", first) for first in values])
    for numbers in (found.features, *found.values.values()):
        assert isinstance(numbers, NoScore) and "clips 2 to 3" in str(numbers)


def test_kept_numbers_are_those_of_the_same_clips_and_metrics(tmp_path: Path) -> None:
    board = Scoreboard(tmp_path, {"metrics": None})
    assert board.missing([(0, 2)], ["student", "real"], lambda *_: "a") == [Task(0, 2, ("student", "real"))]
    board.keep("student", 0, "a", {"motion": torch.ones(2), "fid": NoScore("no network")})
    for of, count, keys in (("a", 2, ()), ("b", 2, ("student",)), ("a", 3, ("student",))):
        missing = board.missing([(0, count)], ["student"], lambda *_, of=of: of)
        assert [task.keys for task in missing] == ([keys] if keys else [])
    other = Scoreboard(tmp_path, {"metrics": ("motion",)})
    assert other.missing([(0, 2)], ["student"], lambda *_: "a")
    path = next((tmp_path / "scores").iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    assert board.missing([(0, 2)], ["student"], lambda *_: "a")


@pytest.mark.parametrize(("asked", "dtype", "products"), [
    ("fp32", torch.float32, "highest"), ("tf32", torch.float32, "high"), ("bf16", torch.bfloat16, "highest"),
])  # fmt: skip
def test_networks_draw_in_the_precision_of_their_stage(
    asked: Any, dtype: torch.dtype, products: str, finished_teacher: tuple[Any, tuple[Path, ...]]
) -> None:
    recipe, files = finished_teacher
    network = networks.load_to_draw(recipe, files, 2, asked)
    assert next(network.parameters()).dtype == dtype
    with networks.computing(asked):
        assert torch.get_float32_matmul_precision() == products
    assert torch.get_float32_matmul_precision() == "highest"


def test_latency_is_measured_one_network_at_a_time_and_says_in_what(
    monkeypatch: pytest.MonkeyPatch, finished_teacher: tuple[Any, tuple[Path, ...]]
) -> None:
    recipe, files = finished_teacher
    there: list[weakref.ref[nn.Module]] = []

    def load(*given: Any) -> nn.Module:
        gc.collect()
        assert all(network() is None for network in there), "two networks at once"
        there.append(weakref.ref(network := networks.load_to_draw(*given)))
        assert next(network.parameters()).dtype == torch.bfloat16
        return network

    def draw(network: Any, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
        assert there[-1]() is network
        return batch.latents.clone()

    monkeypatch.setattr(evaluate, "load_to_draw", load)
    who = {key: Candidate(draw, files, 1, key) for key in ("student", "teacher_1step_guided", "teacher")}
    run: Any = SimpleNamespace(recipe=recipe)
    stage: Any = SimpleNamespace(batch=2, students={"student": "dmd2"}, precision="bf16")
    source: Any = SimpleNamespace(batch=ToySource().batch)
    found = evaluate._latencies(stage, run, who, source)
    assert len(there) == 2 and set(found) == {"batch_2", "batch_1"}
    for taken in found.values():
        assert (taken["precision"], taken["device"]) == ("bf16", "cpu") and taken["backends"]
        assert taken["teacher"]["median"] > 0 and taken["student"]["median"] > 0
