"""The second job through the same stages, at the smallest scale: text, image and video to world."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_distill import cli
from cosmos_distill.config import FewStep
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.sampling.sample import read, write_mp4
from cosmos_distill.train.checkpoint import read_metadata
from tests.run.commands import KILLER, PREDICT25, ended, losses, smoke

WHO = {"teacher", "teacher_4step", "untrained_student", "student"}


@pytest.fixture(scope="module")
def run(finished_predict25: Path) -> Path:
    return finished_predict25


@pytest.fixture(scope="module")
def report(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def test_all_stages_are_complete_within_the_promise(run: Path, report: dict) -> None:
    assert list(report["stages"]) == ["dmd2", "evaluate", "export"]
    assert all(Manifest.read(run / name).complete for name in report["stages"])
    assert report["wall_seconds"] < 90


def test_report_has_the_fixed_names(report: dict) -> None:
    assert report["nfe"] == {"teacher": 16, "student": 4} and report["nfe_ratio"] == 4
    assert 1.5 < report["latency_ratio"] < 20  # 16 evaluations to 4, on a machine that others use
    assert set(report["metrics"]) == WHO | {"codec"}
    for values in report["metrics"].values():
        assert all(math.isfinite(values[name]) for name in ("frechet", "motion"))
        assert all(len(values["draws"][name]) == 2 for name in ("frechet", "motion"))
    assert report["metrics"]["codec"]["motion"] == pytest.approx(0.77, abs=0.1)  # 16 of 96 bands
    assert set(report["ratio_intervals"]) == WHO - {"student"}
    for who in WHO:  # frames 0, 1, 2 belong to two given latent frames, and only frame 0 to one
        kept = report["given_frames"][who]
        assert kept == {"psnr": [100.0] * 3, "exact": True, "clips": [25, 12, 12]}


def test_kill_in_training_then_the_same_command(run: Path, tmp_path: Path) -> None:
    """Between two checkpoints; the average and the learning rates go on by their own counts."""
    out = tmp_path / "run"
    done = smoke(out, "--only", "dmd2", program=(KILLER, "dmd2,none"), recipe=PREDICT25)
    assert ended(done) == {"dmd2": -signal.SIGKILL, "none": 0}, done.stdout + done.stderr
    assert json.loads((out / "dmd2" / "manifest.json").read_text())["attempts"] == 2
    assert losses(out / "dmd2" / "log.jsonl") == losses(run / "dmd2" / "log.jsonl")
    ours, theirs = (load_file(folder / "dmd2" / "student.safetensors") for folder in (out, run))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_log_says_how_many_samples_were_left_out(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "dmd2" / "log.jsonl").read_text().splitlines()]
    assert {line["nonfinite/vsd"] for line in lines if "loss/vsd" in line} == {0.0}


def test_page_shows_what_was_compared(run: Path) -> None:
    page = (run / "report.html").read_text()
    for word in ("motion, 1 is real", "teacher, 4 steps", "teacher, 8 steps", "exact, exact, exact"):
        assert word in page
    assert "Canny" not in page and "<title>predict2.5-smoke</title>" in page


def test_export_says_how_it_is_sampled_and_draws_what_evaluation_drew(run: Path) -> None:
    from cosmos_distill.models import build
    from cosmos_distill.models.common import weights
    from cosmos_distill.run.networks import open_clips
    from cosmos_distill.sampling.samplers import few_steps, noise_of

    path = run / "export" / "student.safetensors"
    said, exported = read_metadata(path), read(path)
    assert (said["nfe"], said["control"], exported.sampler) == (4, None, FewStep(4))
    taus = [float(exported.schedule.to_tau(t)) for t in exported.schedule.student_times(4)]
    assert taus == pytest.approx([1, 0.9375, 5 / 6, 0.625])
    network = build(exported.network, seed=None)
    weights.load_into(network, path)
    batch = open_clips(cli.load(PREDICT25).recipe(scale="smoke"), "eval").batch(0, 32)
    frames = torch.tensor([(0, 0, 0, 1, 2)[i % 5] for i in range(32)])
    noise = noise_of(0, "evaluate", batch)
    drawn = few_steps(network, exported.schedule, batch, noise, exported.sampler, frames=frames)
    kept = load_file(run / "evaluate" / "samples" / "student-000000.safetensors")["latents"]
    torch.testing.assert_close(drawn, kept, atol=1e-5, rtol=1e-4)
    given = torch.arange(3) < frames[:, None]
    same = (kept == batch.latents).flatten(3).all(3).all(1)
    assert torch.equal(same, given)


def test_text_image_and_video_to_world(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import av
    from PIL import Image

    def sample(name: str, *args: str) -> int:
        student = str(run / "export" / "student.safetensors")
        return cli.main(["sample", student, "--clips", "2", "--out", str(tmp_path / name), *args])

    def refusal(*args: str) -> str:
        assert sample("refused", *args) == cli.REFUSED
        assert not (tmp_path / "refused").exists()
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    def decoded(name: str) -> torch.Tensor:
        with av.open(str(tmp_path / name / "clip-000.mp4")) as container:
            frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        return torch.stack(frames).float()

    assert sample("text", "--prompt", "bikes shot 1") == 0
    assert sample("held-out", "--condition-frames", "2") == 0
    assert sorted(os.listdir(tmp_path / "text")) == ["clip-000.mp4", "clip-001.mp4", "grid.png"]
    # Colours only: the tokenizer keeps a flat frame, and so must every clip that begins with it.
    image = torch.full((32, 32, 3), 60, dtype=torch.uint8)
    Image.fromarray(image.numpy()).save(tmp_path / "start.png")
    assert sample("image", "--start", str(tmp_path / "start.png")) == 0
    first, other = decoded("image")[0], decoded("text")[0]
    assert (first - 60).abs().mean() < 4 < (other - 60).abs().mean()
    # Two latent frames are three frames at stride 2: five frames of the file. Twice the size is averaged.
    flat = torch.full((3, 9, 64, 64), 190, dtype=torch.uint8)
    video = write_mp4(flat, tmp_path / "start.mp4", 30.0)
    assert sample("video", "--start", str(video)) == 0
    frames = decoded("video")
    assert (frames[:3] - 190).abs().mean() < 6 < (frames[3:] - 190).abs().mean()

    short = write_mp4(flat[:, :4], tmp_path / "short.mp4", 30.0)
    said = refusal("--start", str(short))
    assert "too short: 2 latent frames are 3 frames at stride 2, hence 5 frames" in said and "has 4" in said
    assert sample("short", "--start", str(short), "--condition-frames", "1") == 0
    assert "trained with 0 to 2 given" in refusal("--start", str(video), "--condition-frames", "3")
    assert "one image" in refusal("--start", str(tmp_path / "start.png"), "--condition-frames", "2")
    Image.fromarray(image[:, :20].numpy()).save(tmp_path / "narrow.png")
    assert "20 x 32 pixels" in refusal("--start", str(tmp_path / "narrow.png"))
    assert "no such file" in refusal("--start", str(tmp_path / "none.png"))
    assert "takes no control" in refusal("--video", str(video))
