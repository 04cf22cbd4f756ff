"""The smoke run of Transfer2.5 from its own teacher to an exported four-step student, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosmos_distill import cli
from cosmos_distill.config import FewStep
from cosmos_distill.models.transfer25.config import PRESETS
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.sampling.exported import read
from tests.run.commands import RECIPE, smoke

TRANSFER25 = RECIPE.with_name("transfer25_dmd2_4step.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("transfer25") / "run"
    done = smoke(out, "--traceback", recipe=TRANSFER25)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_it_learns_from_the_teacher_that_it_trained(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert list(report["stages"]) == ["pretrain", "dmd2", "evaluate", "export"]
    assert report["nfe"] == {"teacher": 16, "student": 4}
    found = {name: Manifest.read(finished / name) for name in report["stages"]}
    assert all(manifest is not None and manifest.complete for manifest in found.values())
    inputs = found["dmd2"].inputs  # type: ignore[union-attr]
    assert "pretrain" in inputs and "teacher" not in inputs
    for values in report["metrics"].values():
        assert {"frechet", "canny_f1", "blur_ssim"} <= values.keys()


def test_clips_are_drawn_from_its_student_with_a_control(finished: Path, tmp_path: Path) -> None:
    student = finished / "export" / "student.safetensors"
    said = read(student)
    assert (said.network, said.control, said.sampler) == (PRESETS["transfer2.5-smoke"], "edge", FewStep(4))
    assert cli.main(["sample", str(student), "--clips", "2", "--out", str(tmp_path / "clips")]) == cli.OK
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 2


def test_its_student_is_taught_from_again(finished: Path, tmp_path: Path) -> None:
    """As the teacher of another run, for which no sizes have to be said."""
    args = ("--teacher", str(finished / "export" / "student.safetensors"), "--only", "dmd2")
    done = smoke(tmp_path / "run", *args, "--trainer.max-steps", "10", recipe=TRANSFER25)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "dmd2" / "manifest.json").is_file()
