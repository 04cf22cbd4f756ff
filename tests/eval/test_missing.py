"""Scores that do not exist are None with a reason, in JSON null and for a person a dash."""

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cosmos_distill import cli
from cosmos_distill.eval.metrics import blur_ssim, canny_f1, motion, random_frechet
from cosmos_distill.eval.missing import NoScore, known, ratio, shown
from cosmos_distill.eval.scores import Clips, numbers, ratio_interval, score
from cosmos_distill.files import to_json
from cosmos_distill.run import report
from tests.run.commands import RECIPE


def noise(count: int, seed: int = 0, frames: int = 3, side: int = 16) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, frames, side, side), generator=random).byte()


def measured(video: torch.Tensor, real: torch.Tensor) -> Clips:
    return Clips(
        numbers(lambda: random_frechet.features(video)),
        {
            "motion": numbers(lambda: motion.energies(video, real)),
            "canny_f1": canny_f1.counts(video, real),
            "blur_ssim": numbers(lambda: blur_ssim.per_clip(video, real)),
        },
    )


def scored(video: torch.Tensor, real: torch.Tensor, draws: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    reference = Clips(numbers(lambda: random_frechet.features(noise(40, 1, *real.shape[2:4]))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score({"student": measured(video, real)}, measured(real, real), reference, draws)
    strict(to_json(found))
    return found["metrics"]["student"], found["floor"]


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_clips_in_which_nothing_moves() -> None:
    still = noise(4)[:, :, :1].expand(-1, -1, 3, -1, -1)
    for video in (still, noise(4, 2)):
        found, _ = scored(video, still)
        assert found["motion"] is None and found["intervals"]["motion"] is None
        assert found["reasons"]["motion"] == "no real clip moves" and found["draws"]["motion"] == [None]
        assert found["frechet"] >= 0
    half = still.clone()
    half[:1] = noise(1, 3)
    found, _ = scored(noise(4, 2), half)
    assert found["motion"] > 0 and found["intervals"]["motion"] is None
    assert "not defined in" in found["reasons"]["intervals.motion"]


def test_black_clips() -> None:
    black = torch.zeros(4, 3, 3, 16, 16, dtype=torch.uint8)
    found, floor = scored(black, black, draws=2)
    assert found["canny_f1"] is None and "no clip has an edge" in found["reasons"]["canny_f1"]
    assert found["blur_ssim"] == 1 and found["intervals"]["blur_ssim"] == (1, 1)
    assert math.isfinite(found["frechet"]) and math.isfinite(floor["frechet"])


def test_one_clip() -> None:
    found, floor = scored(noise(1), noise(1, 2))
    assert found["frechet"] is None and "one clip has no covariance" in found["reasons"]["frechet"]
    assert found["motion"] > 0 and found["intervals"]["motion"] is None
    assert found["reasons"]["intervals.motion"] == "one clip says nothing of the spread"
    assert floor["frechet"] is None and floor["interval"] is None and floor["reasons"]
    found, _ = scored(noise(2), noise(2, 2), draws=2)
    assert found["frechet"] > 0 and found["draws"]["frechet"] == [None, None]


@pytest.mark.parametrize(
    "frames, side, missing", [(1, 16, {"frechet", "motion"}), (3, 8, {"frechet", "blur_ssim"})]
)
def test_clips_that_a_metric_is_not_made_for(frames: int, side: int, missing: set[str]) -> None:
    found, _ = scored(noise(4, 0, frames, side), noise(4, 2, frames, side))
    assert {name for name in ("frechet", "motion", "canny_f1", "blur_ssim") if found[name] is None} == missing
    assert set(found["reasons"]) == missing and all(found["reasons"].values())


def test_ratios() -> None:
    reasons: dict[str, str] = {}
    assert ratio(3.0, 2.0, reasons, "a") == 1.5 and not reasons
    assert ratio(3.0, 0.0, reasons, "b") is None and ratio(None, 1.0, reasons, "c") is None
    assert set(reasons) == {"b", "c"}
    same = Clips(torch.ones(4, 64).double())
    with pytest.raises(NoScore, match="ratio to 0"):
        ratio_interval(same, same, same)
    assert shown(None) == "—" and shown(1.23456) == "1.23"
    assert known({"a": [math.nan, 1.0, {"b": math.inf}]}) == {"a": [None, 1.0, {"b": None}]}


def test_json_is_strict() -> None:
    assert strict(to_json({"a": [math.inf, -math.inf, math.nan, 1.5], "b": (1, None, True, "x")})) == {
        "a": ["inf", "-inf", "nan", 1.5],
        "b": [1, None, True, "x"],
    }


def test_report_of_missing_scores_and_of_an_earlier_version(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    path = out / "evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    one, other = scores["metrics"]["kd_student"], scores["metrics"]["teacher"]
    one["canny_f1"], one["intervals"]["canny_f1"], one["draws"]["canny_f1"] = None, None, [None, None]
    one["reasons"] = {"canny_f1": "no clip has an <edge>"}
    other["intervals"]["frechet"] = [
        math.nan,
        math.inf,
    ]  # as an earlier version wrote it, and without a reason
    del other["reasons"], scores["ratio_reasons"], scores["floor"]["reasons"]
    scores["latency"]["batch_32"]["ratio"] = None
    scores["ratio_intervals"]["teacher"] = None
    path.write_text(json.dumps(scores))
    (out / "dmd2" / "log.jsonl").write_text(
        'no JSON\n{"step": 5, "loss/vsd": "nan"}\n{"step": 10, "loss/vsd": 1.0}\n'
    )
    (out / "dmd2" / "grids" / "step_000000020.png").write_text("no picture")
    recipe = cli.load(RECIPE).recipe(scale="smoke")
    report.write(recipe, out, Console(quiet=True))
    found = strict((out / "report.json").read_text())
    assert found["metrics"]["kd_student"]["canny_f1"] is None and found["latency_ratio"] is None
    assert found["metrics"]["teacher"]["intervals"]["frechet"] == [None, None]
    page = (out / "report.html").read_text()
    assert '<td title="no clip has an &lt;edge&gt;">—</td>' in page
    assert "Dashes: Canny-F1 ↑: no clip has an &lt;edge&gt;." in page
    assert "step_000000020.png cannot be shown" in page
    assert ">nan" not in page and "None" not in page and ">inf" not in page
    # The same with targets, which the smoke recipe has none of.
    found["metrics"]["student"]["frechet"] = None
    found["metrics"]["student"]["reasons"] = {"frechet": "one clip has no covariance"}
    judged = report.targets(found, None, quality=True)
    assert {t["reason"] for t in judged if t["met"] is None} >= {"one clip has no covariance"}
    assert "no score: one clip has no covariance" in report.page.html(
        {**found, "targets": judged}, title="", curves="", pictures=[], recipe=""
    )
