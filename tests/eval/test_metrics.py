"""Metrics are found by name; what each says of clips made for it; sets, floors and differences of several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_distill.eval import metrics
from cosmos_distill.eval.manifolds import inside, precision, radii, recall
from cosmos_distill.eval.measure import Readings, document, load, score
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.metrics import gradient_energy, motion_correlation, motion_steps
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Sample
from cosmos_distill.eval.views import View


def video(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 5, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("name", metrics.names())
def test_every_file_is_a_metric_that_says_what_it_is(name: str) -> None:
    metric = metrics.find(name)
    assert metric.direction in ("lower", "higher", "one")
    assert all(len(said) > 2 for said in (metric.title, metric.unit, metric.source))
    assert (metric.pool is None) != (metric.against is None)
    assert metric.paired == (metric.pool is not None)
    worse, better = {"lower": (2, 1), "higher": (1, 2), "one": (0.5, 1.2)}[metric.direction]
    assert metric.error(worse) > metric.error(better)


def test_the_names_that_reports_use_are_there() -> None:
    wanted = {"mmd", "kid", "frechet", "motion", "motion_correlation", "paired", "gradient_energy"}
    wanted |= {"recall", "canny_f1", "blur_ssim"}
    assert wanted <= set(metrics.names())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'motoin': did you mean motion\?"):
        metrics.find("motoin")
    for name in ("..missing", "mmd.METRIC", "", "os"):
        with pytest.raises(ValueError, match="no metric is called"):
            metrics.find(name)


def test_names_are_known_without_torch() -> None:
    code = "import sys, cosmos_distill.eval.metrics as m; print(len(m.names()) > 9, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


PSNR = '''
"""PSNR to the real clip."""
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import mean

def read(view):
    error = (view.video.double() - view.real.video.double()).square().flatten(1).mean(1)
    return 10 * (255**2 / error.clamp_min(1e-9)).log10()

METRIC = Metric(
    title="PSNR", direction="higher", unit="dB", source="mean squared error", reads=read, pool=mean,
    paired=True
)
'''


def test_one_more_metric_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "psnr.py").write_text(PSNR)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    chosen = load(["psnr", "motion"])
    real = video(8)
    near, far = (real // 2 * 2), (real // 16 * 16)
    found = document(
        chosen, {"near": _read(chosen, near, real), "far": _read(chosen, far, real)}, *_real(chosen, real)
    )
    assert found["metrics"]["near"]["psnr"] > 40 > found["metrics"]["far"]["psnr"]
    assert found["differences"]["near-far"]["psnr"]["low"] > 0
    assert found["about"]["psnr"] == {
        "title": "PSNR", "direction": "higher", "unit": "dB", "source": "mean squared error",
    }  # fmt: skip
    monkeypatch.delitem(sys.modules, "cosmos_distill.eval.metrics.psnr")


def _read(chosen: dict[str, Metric], clips: Tensor, real: Tensor, units: Tensor | None = None) -> Readings:
    found = Readings(chosen)
    for n in range(0, len(clips), 3):  # the last batch is shorter
        part = slice(n, n + 3)
        shots = torch.arange(len(clips))[part] if units is None else units[part]
        found.add(View(clips[part], View(real[part])), shots)
    return found


def _real(chosen: dict[str, Metric], real: Tensor) -> tuple[Readings, Readings]:
    reference = Readings(chosen, as_set=True)
    reference.add(View(video(16, seed=9)), torch.arange(100, 116))
    return _read(chosen, real, real), reference


def test_a_document_is_plain_json_with_values_floor_and_differences() -> None:
    chosen = load(["random_frechet", "motion", "motion_steps", "gradient_energy", "canny_f1"])
    real = video(9)
    still = real[:, :, :1].expand_as(real).contiguous()
    sets = {"student": _read(chosen, real, real), "teacher": _read(chosen, still, real)}
    found = document(chosen, sets, *_real(chosen, real))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    student, teacher = found["metrics"]["student"], found["metrics"]["teacher"]
    assert student["motion"] == 1 and student["intervals"]["motion"] == [1, 1]
    assert teacher["motion"] == 0 and teacher["motion_steps"] == 1
    assert teacher["details"]["motion_steps"] == [0, 0, 0, 0]
    assert set(found["floor"]) - {"intervals", "draws", "reasons"} == {"random_frechet"}
    assert found["floor"]["random_frechet"] == student["random_frechet"]
    # Motion is right near 1: the difference is of how far off each is.
    assert found["differences"]["student-teacher"]["motion"] == {"value": -1, "low": -1, "high": -1}
    assert found["differences"]["teacher-student"]["motion"]["value"] == 1
    apart = found["differences"]["teacher-student"]["random_frechet"]
    assert 0 < apart["low"] < apart["high"]
    assert student["reasons"] == {}


def test_a_metric_that_clips_are_not_made_for_is_null_with_a_reason_and_leaves_the_others() -> None:
    chosen = load(["motion", "gradient_energy", "random_frechet", "motion_correlation"])
    real = video(6)[:, :, :1]
    reference = Readings(chosen, as_set=True)
    reference.add(View(real), torch.arange(6, 12))
    found = document(chosen, {"student": _read(chosen, real, real)}, _read(chosen, real, real), reference)
    student = found["metrics"]["student"]
    assert student["gradient_energy"] == 1
    for name in ("motion", "random_frechet", "motion_correlation"):
        assert student[name] is None and "2 frames" in student["reasons"][name]
    assert found["floor"]["random_frechet"] is None and found["floor"]["reasons"]["random_frechet"]


def test_without_shots_there_are_values_and_no_intervals() -> None:
    chosen = load(["motion"])
    real = video(6)
    readings = Readings(chosen)
    readings.add(View(real, View(real)), None)
    found = document(chosen, {"a": readings, "b": readings}, readings, None)
    assert found["metrics"]["a"]["motion"] == 1 and found["metrics"]["a"]["intervals"]["motion"] is None
    assert "not known which clips are independent" in found["metrics"]["a"]["reasons"]["intervals.motion"]
    assert found["differences"]["a-b"]["motion"]["value"] == 0
    assert found["differences"]["a-b"]["motion"]["low"] is None


def test_metrics_that_read_the_same_share_one_pass() -> None:
    calls = []

    def reads(view: View) -> Tensor:
        calls.append(len(view.video))
        return view.video.double().flatten(1).mean(1)

    def metric(**how) -> Metric:
        return Metric(title="m", direction="lower", unit="u", source="s", reads=reads, **how)

    chosen = {"a": metric(pool=lambda v, w=None: 0.0), "b": metric(pool=lambda v, w=None: 1.0)}
    readings = Readings(chosen)
    readings.add(View(video(3)), torch.arange(3))
    assert calls == [3]
    found = score(chosen, {"x": readings}, None)["x"]
    assert (found["a"].value, found["b"].value) == (0, 1)


def test_views_refuse_what_is_no_clip() -> None:
    with pytest.raises(ValueError, match="uint8"):
        View(video(1).float())
    with pytest.raises(ValueError, match="paired"):
        View(video(2), View(video(3)))
    with pytest.raises(ValueError, match="no real counterparts"):
        _ = View(video(1)).real


def test_gradient_energy_is_that_of_both_directions() -> None:
    clip = torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8)
    clip[..., 2:] = 255  # one step of 1 among three neighbours in each row, none in the columns
    assert gradient_energy.energies(View(clip, View(clip))).tolist() == [[pytest.approx(1 / 3)] * 2]
    assert gradient_energy.energies(View(clip.mT.contiguous(), View(clip)))[0, 0] == pytest.approx(1 / 3)
    flat = torch.zeros_like(clip)
    with pytest.raises(NoScore):
        gradient_energy.METRIC.pool(gradient_energy.energies(View(clip, View(flat))), None)


def test_motion_correlates_with_itself_and_not_with_its_reverse() -> None:
    real = video(6)

    def correlation(clips: Tensor, of: Tensor = real) -> float:
        return motion_correlation.METRIC.pool(motion_correlation.products(View(clips, View(of))), None)

    assert correlation(real) == pytest.approx(1)
    assert correlation(real.flip(2)) < 0.5
    assert correlation(video(6, seed=1)) == pytest.approx(0, abs=0.05)
    assert correlation(real // 2 + 60) > 0.98  # less of it, but in the right places
    still = real[:, :, :1].expand_as(real)
    assert correlation(still) == 0
    with pytest.raises(NoScore, match="no real clip moves"):
        correlation(real, still.contiguous())


def test_motion_is_compared_step_by_step() -> None:
    """A total that is right may hide steps that are not, as those inside the frames of one latent."""
    real = torch.zeros(2, 3, 5, 4, 4, dtype=torch.uint8)
    real += (20 * torch.arange(5, dtype=torch.uint8)).view(1, 1, 5, 1, 1)
    clips = real.clone()
    clips[:, :, 1] -= 20  # nothing, then twice the step
    found = motion_steps.energies(View(clips, View(real)))
    assert motion_steps.steps(found) == pytest.approx([0, 4, 1, 1])
    assert motion_steps.METRIC.pool(found, None) == pytest.approx((1 + 3) / 4)
    with pytest.raises(NoScore, match="2 frames"):
        motion_steps.energies(View(real[:, :, :1], View(real[:, :, :1])))


def test_manifolds_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double()
    assert radii(line, k=1).tolist() == [1, 1, 2, 4]
    assert radii(torch.cat([line, line]), k=1).tolist() == [0] * 8
    assert inside(torch.tensor([[4.5], [12.0]]).double(), line, radii(line, k=1)).tolist() == [
        [False, False, True, True],
        [False, False, False, False],
    ]
    with pytest.raises(NoScore, match="5 nearest"):
        radii(line)


def test_recall_falls_when_modes_are_dropped_and_precision_when_clips_are_strange() -> None:
    random = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=random).double()
    reference = Sample(torch.randn(400, 4, generator=random).double())
    strange = real.clone()
    strange[::2] += 20

    def of(kind, values: Tensor) -> float:
        return kind(reference)(Sample(values))(torch.ones(1))

    assert of(precision, real) > 0.9 and of(recall, real) > 0.9
    assert of(precision, strange) == pytest.approx(0.5 * of(precision, real), abs=0.1)
    narrow = real[real[:, 0] > 0].repeat(2, 1)
    assert of(recall, narrow) < 0.8 < of(precision, narrow)
    assert of(recall, real[:8].repeat(50, 1)) == 0
