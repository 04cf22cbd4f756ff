"""Nothing is lost: a run killed again and again ends with the same bits as one left alone."""

import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.run.commands import KILLER, ended, losses, smoke


def test_kill_at_several_moments_then_the_same_command(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = "generate,kd-interrupt,kd-checkpoint,dmd2,none"
    done = smoke(out, "--only", "generate", "kd", "dmd2", "export", program=(KILLER, moments))
    killed = -signal.SIGKILL
    assert ended(done) == {
        "generate": killed, "kd-interrupt": 130, "kd-checkpoint": killed, "dmd2": killed, "none": 0,
    }, done.stdout + done.stderr  # fmt: skip
    first = next(line for line in done.stderr.splitlines() if line.startswith("left"))
    assert first == "left pairs-00000000.safetensors"  # the half-written one has no such name
    assert "same command goes on" in " ".join(done.stderr.replace("│", " ").split())

    for name in ("kd", "dmd2"):
        assert losses(out / name / "log.jsonl") == losses(finished / name / "log.jsonl")
    for name in (
        "kd/student",
        "dmd2/student",
        "export/student",
        *(f"generate/pairs/pairs-{i:08d}" for i in (0, 16)),
    ):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (out, finished))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    attempts = {
        n: json.loads((out / n / "manifest.json").read_text())["attempts"] for n in ("generate", "kd", "dmd2")
    }
    assert attempts == {"generate": 2, "kd": 3, "dmd2": 2}
    leftovers = [p for p in out.rglob("*") if p.name.startswith(".") or p.name.endswith(".tmp")]
    assert leftovers == []
