"""What a file of weights says of its sizes is compared with the network before any work, and before memory is
taken for it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from cosmos_distill import cli, models
from cosmos_distill.config import Generate, Guidance, Recipe, Stage, Train
from cosmos_distill.errors import Refusal
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.levels import LogNormal
from cosmos_distill.models.common import weights
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.run import runner
from cosmos_distill.run.runner import run_recipe
from tests.fields.specimens import OPTIM, TRANSFER1, trainer
from tests.run.commands import RECIPE, SMOKE

DAMAGES = {
    "another network": (lambda state: load_file(SMOKE.with_name("predict2.5-smoke.safetensors")), "missing"),
    "fewer blocks": (
        lambda state: {name: v for name, v in state.items() if not name.startswith("base.blocks.1.")},
        "missing: base.blocks.1.",
    ),
    "another width": (
        lambda state: {n: v[..., : v.shape[-1] - 1] if "q_norm" in n else v for n, v in state.items()},
        "is [23], not [24]",
    ),
    "no control branch": (
        lambda state: {name: v for name, v in state.items() if name.startswith("base.")},
        "pass the pair (base, control)",
    ),
    "integers": (
        lambda state: {name: v.to(torch.int8) if "q_norm" in name else v for name, v in state.items()},
        "not floating point",
    ),
}


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "run"])
def test_a_teacher_of_other_sizes_is_refused_before_any_stage(
    damage: str,
    dry: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, said = DAMAGES[damage]
    teacher = tmp_path / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(SMOKE)).items()}, teacher)
    monkeypatch.setattr(runner, "_run_stage", lambda *args: pytest.fail("a stage began"))
    words = [str(RECIPE), "--scale", "smoke", "--teacher", str(teacher), "--out", str(tmp_path / "run")]
    assert cli.main([*words, *(["--dry-run"] if dry else [])]) == cli.REFUSED
    text = shown(capsys)
    assert said in text and "does not fit this network" in text and "Traceback" not in text


def test_it_is_looked_at_before_stages_that_do_not_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at all where the stages that read it have nothing to do, or are not asked for."""
    began: list[str] = []

    class Began(Exception):
        pass

    def begin(run: object, name: str, stage: Stage) -> None:
        began.append(name)
        raise Began

    monkeypatch.setattr(runner, "_run_stage", begin)
    first = Train(method=Denoising(student=OPTIM, levels=LogNormal()), trainer=trainer())
    stages = {"pretrain": first, "generate": Generate(pairs=2, guidance=Guidance(1.0), steps=1, batch=2)}
    teacher = tmp_path / "teacher.safetensors"
    save_file({"base.x": torch.zeros(1)}, teacher)
    recipe: Recipe = dataclasses.replace(TRANSFER1, stages=stages, teacher=teacher)

    def go(*only: str) -> None:
        run_recipe(recipe, tmp_path / "run", console=Console(quiet=True), only=only)

    with pytest.raises(Refusal, match=r"teacher\.safetensors does not fit this network"):
        go()
    assert not began
    with pytest.raises(Began):
        go("pretrain")
    assert began == ["pretrain"]


def test_headers_alone_are_read(tmp_path: Path) -> None:
    """Values are no matter of this check: it takes the same time at any size."""
    state = load_file(SMOKE) | {}
    broken = next(iter(state))
    state[broken] = torch.full_like(state[broken], torch.nan)
    file = tmp_path / "damaged.safetensors"
    save_file(state, file, {"cosmos_distill": json.dumps({"weights_sha256": "0" * 64})})
    config = PRESETS["transfer1-smoke"]
    weights.check(models.build(config, device="meta", seed=None), file)
    with pytest.raises(ValueError, match="damaged or was changed"):
        weights.load_into(models.build(config, seed=None), file)


def test_a_student_that_names_a_larger_network_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open

    with safe_open(SMOKE, framework="pt") as file:
        said = json.loads(file.metadata()["cosmos_distill"])
    mine = tmp_path / "mine.safetensors"
    save_file(load_file(SMOKE), mine, {"cosmos_distill": json.dumps(said | {"network": "transfer1-mini"})})
    build, places = models.build, []

    def noted(*args: object, **options: object) -> object:
        places.append(str(options.get("device")))
        return build(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "build", noted)
    assert cli.main(["sample", str(mine), "--clips", "1", "--out", str(tmp_path / "out")]) == cli.REFUSED
    assert "does not fit this network" in shown(capsys) and places == ["meta"]
