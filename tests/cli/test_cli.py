"""The command line: options, suggestions, refusals, exit statuses; all before torch is imported."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.config import Train
from cosmos_distill.errors import Refusal

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "transfer1_kd_dmd2.py"
ENV = os.environ | {"PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1]), "COLUMNS": "120"}


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cosmos_distill", *args]
    return subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True, timeout=300)


def trainers(*args: str) -> dict[str, int]:
    stages = cli.parse([str(RECIPE), *args]).recipe.stages
    return {name: stage.trainer.max_steps for name, stage in stages.items() if isinstance(stage, Train)}


def children() -> float:
    """Seconds of CPU that child processes took: a busy machine makes them wait, not work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom cosmos_distill.cli import main\n"
        f"try: main([{str(RECIPE)!r}, '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    seconds = []
    for _ in range(2):
        begin = children()
        done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
        seconds.append(children() - begin)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 1.0
    for option in (
        "--scale {smoke,mini,7b}",
        "--stages.kd.trainer.max-steps",
        "--dry-run",
        "--parallel.tensor",
    ):
        assert option in done.stdout
    assert "What the clips are generated from." in done.stdout  # the recipe's own docstring


def test_bare_command_says_how_to_use_it() -> None:
    assert run().returncode == cli.REFUSED
    done = run("--help")
    assert done.returncode == cli.OK and "cosmos-distill RECIPE.py" in done.stdout
    assert run("--version").stdout.strip() == f"cosmos-distill {cosmos_distill.__version__}"


def test_misspelt_option_gets_a_suggestion() -> None:
    done = run(str(RECIPE), "--stages.kd.trainer.max-stps", "3")
    assert done.returncode == cli.REFUSED
    assert "Perhaps you meant" in done.stdout + done.stderr
    assert "--stages.kd.trainer.max-steps" in done.stdout + done.stderr
    done = run(str(RECIPE), "--scal", "smoke")
    assert done.returncode == cli.REFUSED and "--scale" in done.stdout + done.stderr


def test_scale_chooses_the_numbers_and_options_override_them() -> None:
    assert trainers("--scale", "7b") == {"kd": 10_000, "dmd2": 24_000}
    assert trainers("--scale", "7b", "--stages.kd.trainer.max-steps", "7") == {"kd": 7, "dmd2": 24_000}
    found = cli.parse(
        [str(RECIPE), "--stages.dmd2.method.guidance.scale=3", "--control", "vis", "--seed", "4"]
    )
    assert found.recipe.stages["dmd2"].method.guidance.scale == 3  # type: ignore[attr-defined]
    assert (found.recipe.control, found.recipe.seed) == ("vis", 4)


@pytest.mark.parametrize("word", ["None", "none", "NULL"])
def test_none_may_be_written_in_small_letters(word: str) -> None:
    recipe = str(RECIPE.parent / "predict25_dmd2_4step.py")
    assert cli.parse([recipe, "--control", word]).recipe.control is None
    assert cli.parse([recipe, "--control", "edge"]).recipe.control == "edge"
    with pytest.raises(Refusal, match="no control is called 'nothing': there are depth, edge, "):
        cli.parse([recipe, "--control", "nothing"])
    # A name is taken as it is written.
    assert cli.parse([recipe, "--out", word]).out.name in (word, "mini")


def test_trainer_is_an_alias_for_every_training_stage_and_the_named_stage_wins() -> None:
    assert trainers("--trainer.max-steps", "5") == {"kd": 5, "dmd2": 5}
    assert trainers("--trainer.max-steps=5") == {"kd": 5, "dmd2": 5}
    for args in (("--trainer.max-steps", "5", "--stages.kd.trainer.max-steps", "9"),
                 ("--stages.kd.trainer.max-steps", "9", "--trainer.max-steps", "5")):  # fmt: skip
        assert trainers(*args) == {"kd": 9, "dmd2": 5}
    flag = cli.parse([str(RECIPE), "--trainer.activation-checkpointing", "selective"]).recipe.stages["kd"]
    assert isinstance(flag, Train) and flag.trainer.activation_checkpointing == "selective"


def test_an_option_of_the_function_may_share_its_name_with_a_part_of_the_recipe() -> None:
    found = cli.parse([str(RECIPE), "--scale", "7b", "--data", "clips", "--data.frames", "9"]).recipe.data
    assert (found.root, found.frames) == (Path("clips"), 9)


def test_run_folder() -> None:
    assert cli.parse([str(RECIPE)]).out == Path("runs/transfer1_kd_dmd2/mini-edge")
    assert cli.parse([str(RECIPE), "--scale", "smoke", "--control", "vis"]).out.name == "smoke-vis"
    assert cli.parse([str(RECIPE), "--out", "x"]).out == Path("x")


def test_bad_values_are_refused_by_their_options_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--trainer.max-steps", "0", "--stages.dmd2.method.guidance.scale", "inf", "--data.stride", "-1")
    assert cli.main([str(RECIPE), *wrong, "--dry-run"]) == cli.REFUSED
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for text in (
        "--stages.kd.trainer.max-steps must be an integer from 1 to 100,000,000, not 0",
        "--stages.dmd2.trainer.max-steps must be",
        "--stages.dmd2.method.guidance.scale must be a finite number, not inf",
        "--data.stride must be an integer from 1",
    ):
        assert text in shown


IMPOSSIBLE = {
    "no teacher": (("--scale", "7b"), "--teacher PATH"),
    "missing teacher": (("--teacher", "nowhere.safetensors"), "nowhere.safetensors"),
    "layout without a launcher": (
        ("--parallel.tensor", "2"),
        "torchrun --standalone --nproc-per-node 2 -m cosmos_distill",
    ),
    "condition frames": (("--data.max-condition-frames", "3"), "choose at most 2"),
    "method's condition frames": (
        ("--stages.kd.method.condition-frames", *["0.25"] * 4),
        "leave at least one to generate",
    ),
    "frames": (("--data.frames", "6"), "nearest are 5 and 7"),
    "size": (("--data.width", "36"), "not a multiple of 8"),
    "depth": (("--control", "depth"), "--control depth: these clips come without videos"),
    "preset": (("--network", "transfer2"), "transfer1-mini"),
    "stage": (("--stages.dmd2.start-from", "dk"), "no Train stage of that name comes before"),
    "only": (("--only", "dk"), "the stages are generate, kd, dmd2, evaluate, export"),
}


@pytest.mark.parametrize("args, advice", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_impossible_runs_are_refused_with_what_to_do(
    args: tuple[str, ...], advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = () if "--scale" in args else ("--scale", "smoke")
    status = cli.main([str(RECIPE), *scale, *args, "--out", str(tmp_path / "run")])
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == cli.REFUSED
    assert advice in shown and "Traceback" not in shown
    assert not (tmp_path / "run").exists()


def test_depth_needs_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    args = [
        str(RECIPE),
        "--scale",
        "smoke",
        "--control",
        "depth",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main(args) == cli.REFUSED
    shown = "".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"needsthefolder{tmp_path / 'depth'}" in shown


def test_unwritable_output_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main([str(RECIPE), "--scale", "smoke", "--out", str(tmp_path / "file" / "run")]) == cli.REFUSED
    assert "choose another folder with --out" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_recipe_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "needy.py").write_text("def recipe(scale): ...")
    for name, advice in (
        ("empty.py", "defines no function"),
        ("needy.py", "needs a default"),
        ("no.py", "neither"),
    ):
        assert cli.main([str(tmp_path / name)]) == cli.REFUSED
        assert advice in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_failure_is_framed_and_the_traceback_is_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr("cosmos_distill.run.runner.run_recipe", broken)
    args = [str(RECIPE), "--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main(args) == cli.FAILED
    shown = capsys.readouterr().err
    assert "disk on fire" in shown and "--traceback" in shown and "Traceback" not in shown
    assert cli.main([*args, "--traceback"]) == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_has_its_own_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cosmos_distill.train.guard import Interrupted

    for error in (Interrupted("saved"), KeyboardInterrupt()):
        monkeypatch.setattr(
            "cosmos_distill.run.runner.run_recipe", lambda *a, _error=error, **k: _raise(_error)
        )
        assert cli.main([str(RECIPE), "--scale", "smoke", "--out", str(tmp_path)]) == cli.INTERRUPTED


def _raise(error: BaseException) -> None:
    raise error


def test_generate_eval_and_export_run_the_stages_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("cosmos_distill.run.runner.run_recipe", lambda *a, only, **k: seen.append(only))
    for word in ("generate", "eval", "export"):
        assert cli.main([word, str(RECIPE), "--scale", "smoke"]) == cli.OK
    assert seen == [("generate",), ("evaluate",), ("export",)]


def test_what_a_word_runs_and_what_is_asked_for_besides_have_to_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(
        "cosmos_distill.run.runner.run_recipe", lambda *a, **k: seen.append((k["only"], k["argv"]))
    )
    line = [str(RECIPE), "--scale", "smoke", "--only", "evaluate"]
    assert cli.main(["eval", *line]) == cli.OK
    assert seen == [(("evaluate",), ("eval", *line))]  # the word belongs to the command that is repeated
    assert cli.main(["export", *line]) == cli.REFUSED
    assert "--only evaluate: cosmos-distill export runs export" in capsys.readouterr().err


def test_bash_completion_knows_the_options_of_a_recipe(tmp_path: Path) -> None:
    program = tmp_path / "cosmos-distill"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cosmos_distill "$@"\n')
    program.chmod(0o755)
    env = ENV | {"PATH": f"{tmp_path}:{ENV['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def complete(*words: str) -> list[str]:
        listed = " ".join(f"'{w}'" for w in words)
        line = f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _cosmos_distill; echo ${{COMPREPLY[@]}}"
        script = f'eval "$(cosmos-distill completion bash)"; {line}'
        done = subprocess.run(["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout.split()

    assert {"sample", "plan"} <= set(complete("cosmos-distill", ""))
    options = complete("cosmos-distill", "recipes/transfer1_kd_dmd2.py", "--stages.kd.tr")
    assert "--stages.kd.trainer.max-steps" in options
    assert all(option.startswith("--stages.kd.tr") for option in options)
    assert len(list((tmp_path / "cache" / "cosmos-distill").iterdir())) == 1
    (tmp_path / "file").write_text("in the way")
    env["XDG_CACHE_HOME"] = str(tmp_path / "file")  # nothing can be kept there, and nothing is said
    assert "--stages.kd.trainer.max-steps" in complete(
        "cosmos-distill", "recipes/transfer1_kd_dmd2.py", "--stages.kd.tr"
    )
    assert (tmp_path / "file").read_text() == "in the way"
    assert cli.main(["completion", "fish"]) == cli.REFUSED


@pytest.mark.parametrize("columns", ["0", "1", "12"])
def test_what_is_wrong_is_said_however_narrow_the_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["nowhere.py"]) == cli.REFUSED
    assert "cannot run this: nowhere.py is neither a recipe file" in capsys.readouterr().err


def test_output_of_another_encoding_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr("cosmos_distill.run.runner.run_recipe", lambda *a, **k: print("Fréchet distance ↓"))
    assert cli.main([str(RECIPE), "--scale", "smoke"]) == cli.OK
    said.flush()
    assert said.buffer.getvalue() == b"Fr?chet distance ?\n"  # type: ignore[attr-defined]
