"""A student in eight bits: scored beside the whole one, exported, drawn from, and a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosmos_distill import cli
from cosmos_distill.models.common import weights
from cosmos_distill.sampling.exported import read
from tests.run.commands import said_of
from tests.stages.control_recipe import RECIPE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8")
    (folder / "recipe.py").write_text(RECIPE)
    command = [str(folder / "recipe.py"), "--control", "edge", "--stages.train.trainer.sample-every", "0"]
    command += ["--stages.train.trainer.max-steps", "1"]
    teacher = [*command, "--out", str(folder / "teacher"), "--stages.export.precision", "fp8"]
    assert cli.main(teacher) == 0
    whole = folder / "teacher" / "export" / "student.safetensors"
    student = [*command, "--teacher", str(whole), "--out", str(folder / "run")]
    student += ["--stages.export.precision", "fp8", "--stages.evaluate.fp8", "student"]
    assert cli.main(student) == 0  # from pairs of a teacher in eight bits
    return folder / "run"


def test_the_report_has_what_eight_bits_lose(run: Path) -> None:
    scores = json.loads((run / "report.json").read_text())
    assert {"student", "student_fp8"} <= scores["metrics"].keys()
    one, other = (scores["metrics"][key]["canny_f1"] for key in ("student", "student_fp8"))
    assert one is not None and other is not None and abs(one - other) < 0.2
    assert "fp8" in (run / "report.html").read_text()


def test_the_export_is_read_and_drawn_from(run: Path, tmp_path: Path) -> None:
    path = run / "export" / "student.safetensors"
    assert read(path).precision == "fp8"
    found, trained = weights.load(path)[0], weights.load(run / "train" / "student.safetensors")[0]
    assert found.keys() == trained.keys()
    assert cli.main(["sample", str(path), "--clips", "1", "--out", str(tmp_path / "clips")]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--stages.export.precision", "fp8", "--stages.export.names", "official"],
            "bf16 for official",
        ),
        (["--stages.evaluate.fp8", "nobody"], "names 'nobody', which is none of the students student"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = run.parent / "teacher" / "export" / "student.safetensors"
    command = [str(run.parent / "recipe.py"), "--teacher", str(teacher), "--out", str(tmp_path), "--dry-run"]
    assert cli.main([*command, *options]) == 2
    assert said in said_of(capsys)
