"""The main job, end to end, at the smallest scale: every code path that a large run takes."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cosmos_distill import cli
from cosmos_distill.families import described
from cosmos_distill.files import sha256
from cosmos_distill.models.common import weights
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.sampling.sample import write_mp4
from cosmos_distill.train.checkpoint import read_metadata
from tests.run.commands import RECIPE

WHO = {"teacher", "teacher_1step", "teacher_1step_guided", "untrained_student", "kd_student", "student"}


@pytest.fixture(scope="module")
def report(finished: Path) -> dict:
    return json.loads((finished / "report.json").read_text())


def test_all_stages_are_complete_within_the_promise(finished: Path, report: dict) -> None:
    assert list(report["stages"]) == ["generate", "kd", "dmd2", "evaluate", "export"]
    for name in report["stages"]:
        manifest = Manifest.read(finished / name)
        assert manifest is not None and manifest.complete
    assert report["wall_seconds"] == pytest.approx(sum(s["seconds"] for s in report["stages"].values()))
    assert report["wall_seconds"] < 90


def test_report_has_the_fixed_names(report: dict) -> None:
    assert report["nfe_ratio"] == 16  # 8 x 2 evaluations to 1
    assert report["latency_ratio"] > 5
    assert set(report["metrics"]) == WHO | {"codec"}
    for values in report["metrics"].values():
        assert all(math.isfinite(values[name]) for name in ("frechet", "canny_f1", "blur_ssim"))
        assert all(len(values["draws"][name]) == 2 for name in ("frechet", "canny_f1", "blur_ssim"))
    assert 0 <= report["floor"]["frechet"] < min(v["frechet"] for v in report["metrics"].values())
    assert report["metrics"]["codec"]["blur_ssim"] > 0.95
    assert report["recipe"]["network"] == described(PRESETS["transfer1-smoke"])


def test_report_says_what_a_training_step_takes_by_backend(finished: Path, report: dict) -> None:
    step = report["step"]
    assert step["picked"][-1] == "sdpa" and step["micro_batch"] == 4
    assert set(step["seconds"]) == {"picked", "reference", "reference_sdpa"}
    for who, taken in step["seconds"].items():
        assert 0 < taken["fastest"] <= taken["median"] <= taken["slowest"]
        if who != "picked":
            assert step["ratios"][who] == pytest.approx(taken["median"] / step["seconds"]["picked"]["median"])
    page = (finished / "report.html").read_text()
    assert (
        "picked here: cpu, sdpa" in page and f"{1e3 * step['seconds']['reference']['median']:,.1f} ms" in page
    )


def test_distillation_moves_the_student_towards_real_clips(report: dict) -> None:
    metrics = report["metrics"]
    assert metrics["kd_student"]["frechet"] < 0.9 * metrics["untrained_student"]["frechet"]


def test_page_needs_no_other_file(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<svg" in page and page.count("data:image/png;base64,") >= 3
    for attribute in ('src="', 'href="', "url("):
        assert all(rest.startswith("data:") for rest in page.split(attribute)[1:])
    for word in ("loss/vsd", "loss/kd", "max_steps: 20", "Fréchet", "teacher, 8 steps"):
        assert word in page


def test_losses_are_logged_by_their_names(finished: Path) -> None:
    lines = {
        name: [json.loads(line) for line in (finished / name / "log.jsonl").read_text().splitlines()]
        for name in ("generate", "kd", "dmd2", "evaluate")
    }
    assert all("loss/kd" in line and line["loss/kd"] > 0 for line in lines["kd"])
    keys = set().union(*lines["dmd2"])
    assert {"loss/vsd", "loss/fake_score", "loss/gan_generator", "loss/gan_discriminator"} <= keys
    assert lines["generate"][-1]["pairs"] == 32
    assert (finished / "dmd2" / "grids" / "step_000000020.png").stat().st_size > 1000


def test_resolved_recipe_is_saved(finished: Path) -> None:
    saved = json.loads((finished / "recipe.json").read_text())
    assert saved["recipe"]["stages"]["kd"]["trainer"]["max_steps"] == 20
    assert "def recipe(" in saved["file"]["text"] and "--scale" in saved["argv"]


def test_second_run_does_nothing_and_a_different_one_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent != out}
    words = [str(RECIPE), "--scale", "smoke", "--out", str(out)]
    assert cli.main(words) == 0 and capsys.readouterr().out.count("already complete") == 5
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert cli.main([*words, "--stages.kd.method.student.lr", "0.5"]) == 2
    assert "stage.method.student.lr" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_export_describes_itself_and_is_the_student(finished: Path) -> None:
    path = finished / "export" / "student.safetensors"
    said = read_metadata(path)
    assert (said["nfe"], said["guidance_baked_in"], said["sampler"]) == (
        1,
        True,
        {"kind": "few_step", "steps": 1, "fresh_noise": False},
    )
    assert (said["network"], said["control"]) == (described(PRESETS["transfer1-smoke"]), "edge")
    assert said["schedule"]["sigma_max"] == 80.0
    stages = said["provenance"]["stages"]
    assert stages["dmd2"]["manifest_sha256"] == sha256(finished / "dmd2" / "manifest.json")
    assert stages["generate"]["teacher_sha256"] == Manifest.read(finished / "generate").inputs["teacher"]
    exported, trained = load_file(path), load_file(finished / "dmd2" / "student.safetensors")
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[k], trained[k]) for k in exported)


def test_sample_draws_the_clips_that_evaluation_drew(finished: Path, tmp_path: Path) -> None:
    """From the export alone, and by the same function: equal noise gives equal clips."""
    from cosmos_distill.config import EDM, ONE_STEP
    from cosmos_distill.diffusion import EDMSchedule
    from cosmos_distill.models import build
    from cosmos_distill.run.networks import open_clips
    from cosmos_distill.sampling.sample import read
    from cosmos_distill.sampling.samplers import few_steps, noise_of

    path = finished / "export" / "student.safetensors"
    exported = read(path)
    assert exported.schedule == EDMSchedule(EDM())
    network = build(PRESETS["transfer1-smoke"], seed=None)
    weights.load_into(network, path)
    recipe = cli.load(Path(__file__).parents[2] / "recipes" / "transfer1_kd_dmd2.py").recipe(scale="smoke")
    batch = open_clips(recipe, "eval").batch(0, 32)
    noise = noise_of(0, "evaluate", batch)
    assert exported.sampler == ONE_STEP
    drawn = few_steps(network, exported.schedule, batch, noise, exported.sampler)
    kept = load_file(finished / "evaluate" / "samples" / "student-000000.safetensors")["latents"]
    assert torch.allclose(drawn, kept, atol=1e-5)


def test_sample_command_writes_videos(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    def sample(*args: str) -> int:
        return cli.main(["sample", str(finished / "export" / "student.safetensors"), *args])

    out = tmp_path / "clips"
    assert sample("--clips", "3", "--out", str(out)) == 0
    assert sorted(os.listdir(out)) == ["clip-000.mp4", "clip-001.mp4", "clip-002.mp4", "grid.png"]
    with av.open(str(out / "clip-000.mp4")) as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width) == (5, 256)
    # A video of one's own: nine frames are what a student of 5 frames at stride 2 sees.
    long = write_mp4(torch.randint(0, 256, (3, 9, 48, 40)).to(torch.uint8), tmp_path / "long.mp4", 30.0)
    for option in ("--video", "--control-video"):
        assert (
            sample(option, str(long), "--clips", "2", "--prompt", "a bike", "--out", str(tmp_path / option))
            == 0
        )
        assert len(list((tmp_path / option).glob("*.mp4"))) == 2
    assert sample("--video", str(out / "clip-000.mp4"), "--out", str(tmp_path / "short")) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "too short: a clip is 5 frames at stride 2, hence 9 frames of the video, and it has 5" in said
    assert sample("--video", "a.mp4", "--control-video", "b.mp4", "--out", str(tmp_path / "o")) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_weights_that_are_no_export_are_refused(finished: Path, tmp_path: Path) -> None:
    from cosmos_distill.errors import Refusal
    from cosmos_distill.sampling.sample import read

    with pytest.raises(Refusal, match="not written by an export stage"):
        read(finished / "dmd2" / "student.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(Refusal, match="no safetensors file"):
        read(tmp_path / "x.safetensors")
    with pytest.raises(Refusal, match="no such file"):
        read(tmp_path / "y.safetensors")


def test_no_pickle_is_left_behind(finished: Path) -> None:
    kinds = {p.suffix for p in finished.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".png", ".html", ".lock"}
    with safe_open(finished / "kd" / "student.safetensors", framework="pt") as file:
        assert file.metadata()


def test_export_in_official_names_is_the_same_student(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "export")
    words = [str(RECIPE), "--scale", "smoke", "--out", str(out), "--stages.export.names", "official"]
    assert cli.main(words) == 0
    own = weights.load(finished / "export" / "student.safetensors")[0]
    official = weights.load(out / "export" / "student.pt")[0]
    assert own.keys() == official.keys() and all(torch.equal(own[k], official[k]) for k in own)
