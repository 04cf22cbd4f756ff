"""Full and read-only disks, and output that nobody can read: one sentence, and nothing half-written."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cosmos_distill import cli
from cosmos_distill.run.progress import Log
from cosmos_distill.sampling import sample
from cosmos_distill.stages.published import official
from cosmos_distill.storage import DiskError, publish, publish_tensors
from cosmos_distill.train.checkpoint import Store, whole
from cosmos_distill.train.log import Board, RunLog
from cosmos_distill.train.visuals import grid
from tests.robustness import kills
from tests.robustness.disk import full_disk
from tests.robustness.inputs.students import PREDICT
from tests.run.commands import ENV, RECIPE


def _save(folder: Path) -> None:
    with Store(folder / "checkpoints", keep=2) as store:
        store.save(7, {"network": {"w": whole(torch.zeros(5000))}}, {"step": 7})


def _log(folder: Path) -> None:
    log = RunLog(folder, 0, 9, "x", Console(quiet=True))
    try:
        for step in range(200):
            log.record(step, 0.0, {"loss/kd": 0.1234567})
    finally:
        log.close()


def _lines(folder: Path) -> None:
    log = Log(folder)
    for pairs in range(400):
        log.line(pairs=pairs)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "JSON": ("x.json", lambda folder: publish(folder / "x.json", "x" * 9999)),
    "pairs": ("x.bin", lambda folder: publish(folder / "x.bin", bytes(9999))),
    "weights": (
        "x.safetensors",
        lambda f: publish_tensors({"w": torch.zeros(9999)}, f / "x.safetensors", {}),
    ),
    "the official file": ("student.pt", lambda f: official({"w": torch.zeros(9999)}, f, {})),
    "a picture": (
        "x.png",
        lambda f: grid({"a": torch.randint(0, 255, (1, 3, 2, 96, 96)).byte()}, f / "x.png"),
    ),
    "a checkpoint": ("step_000000007", _save),
    "the log of a training": ("log.jsonl", _log),
    "the log of another stage": ("log.jsonl", _lines),
}


@pytest.mark.parametrize("name, write", WRITERS.values(), ids=WRITERS.keys())
def test_every_writer_says_what_to_do_and_leaves_nothing_half(
    name: str, write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Board, "open", lambda *_: None)
    with full_disk(), pytest.raises(DiskError, match=rf"cannot write .*{name}.*free some space"):
        write(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"log.jsonl"}
    assert left == set()


@pytest.mark.parametrize("name, write", WRITERS.values(), ids=WRITERS.keys())
def test_every_file_has_the_permissions_of_the_umask(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    for mask in (0o002, 0o027, 0o077):
        before = os.umask(mask)
        try:
            write(tmp_path / oct(mask) if (tmp_path / oct(mask)).mkdir() is None else tmp_path)
        finally:
            os.umask(before)
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / oct(mask)).rglob("*") if p.is_file()}
        assert modes == {0o666 & ~mask}


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_a_run_with_one_sentence_and_the_same_command_goes_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "kd")
    words = [str(RECIPE), "--scale", "smoke", "--out", str(out)]
    with full_disk(500_000):  # enough for all but the weights
        assert cli.main(words) == cli.FAILED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "free some space, and the same command goes on" in said and "Traceback" not in said
    assert cli.main(words) == cli.OK
    assert kills.results(out) == kills.results(finished)


@pytest.mark.parametrize("failing", ["folder", "opening", "writing"])
def test_training_goes_on_without_tensorboard(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "folder":
        (tmp_path / "tensorboard").write_text("not a folder")
    elif failing == "opening":
        monkeypatch.setattr(Board, "__init__", full)
    else:
        monkeypatch.setattr(Board, "add", full)
    log = RunLog(tmp_path, 0, 9, "x")
    for step in (1, 2):
        log.record(step, 0.0, {"loss/kd": 1.0})
    log.sync()
    log.close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    said = capsys.readouterr()
    assert said.out.count("no TensorBoard from here on") == 1 and "Traceback" not in said.out + said.err


def test_a_run_goes_on_when_nobody_reads_what_it_says(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    program = [sys.executable, "-m", "cosmos_distill", str(RECIPE), "--scale", "smoke"]
    words = [*program, "--out", str(out), "--only", "export"]
    read, write = os.pipe()
    os.close(read)  # `... | head` that has ended
    with open("/dev/full", "w") as full:
        for stdout in (write, full):
            done = subprocess.run(words, env=ENV, stdout=stdout, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (cli.OK, "")
        looked = subprocess.run(
            [*program, "--help"], env=ENV, stdout=write, stderr=subprocess.PIPE, text=True
        )
        assert (looked.returncode, looked.stderr) == (cli.OK, "")
        # Where what is said is all that there is, a full disk counts.
        asked = [sys.executable, "-m", "cosmos_distill", "--version"]
        looked = subprocess.run(asked, env=ENV, stdout=full, stderr=subprocess.PIPE, text=True)
        assert looked.returncode == cli.FAILED and "Traceback" not in looked.stderr
        assert "No space left" in looked.stderr and "Exception ignored" not in looked.stderr
    os.close(write)
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], env=ENV)
    assert closed.returncode == cli.OK
    assert kills.results(out) == kills.results(finished)


def test_what_is_said_of_clips_that_a_full_disk_cuts_short_is_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = sample.write_mp4

    def full(clip: torch.Tensor, path: Path, fps: float) -> Path:
        if path.name == "clip-001.mp4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(clip, path, fps)

    command = ["sample", str(PREDICT), "--clips", "2", "--prompt", "a bike", "--out", str(tmp_path / "clips")]
    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_mp4", full)
        assert cli.main(command) == cli.FAILED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "1 of 2 clips are there; once this is mended, the same command with --overwrite" in said
    assert "the same command goes on" not in said
    assert cli.main([*command, "--overwrite"]) == cli.OK
