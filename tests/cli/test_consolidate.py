"""One file out of a checkpoint's shards, from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.train.checkpoint import Store, read_metadata, whole


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    groups = {
        "network_student": {"w": whole(torch.ones(3).bfloat16())},
        "ema_student": {"w": whole(torch.full((3,), 0.5))},
        "network_fake_score": {"w": whole(torch.full((3,), 2.0))},
    }
    with Store(tmp_path / "checkpoints", keep=1) as store:
        store.save(12, groups, {"fingerprint": {"method.name": "KD"}})
    return tmp_path / "checkpoints" / "step_000000012"


def test_one_process_without_ranks_writes_the_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    package = str(Path(cosmos_distill.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cosmos_distill", "consolidate", str(checkpoint), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == cli.OK, done.stderr
    assert done.stdout.strip() == str(out)
    assert torch.equal(load_file(out)["w"], torch.full((3,), 0.5).bfloat16())
    assert read_metadata(out) == {"method": "KD", "step": 12, "weights": "ema"}


def test_role_and_weights_are_options(checkpoint: Path, tmp_path: Path) -> None:
    for name, value, options in (
        ("network", 1.0, ["--weights", "network"]),
        ("critic", 2.0, ["--role", "fake_score"]),
        ("wide", 0.5, ["--precision", "fp32"]),
    ):
        out = tmp_path / f"{name}.safetensors"
        assert cli.main(["consolidate", str(checkpoint), str(out), *options]) == cli.OK
        assert load_file(out)["w"].tolist() == [value] * 3


def test_help_and_errors_say_what_to_do(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["consolidate", "--help"])
    assert end.value.code == 0 and "--weights {auto,ema,network}" in capsys.readouterr().out
    assert cli.main(["consolidate", str(checkpoint)]) == cli.REFUSED
    assert "the file to write" in capsys.readouterr().err
    for where, options, said in (
        (tmp_path, [], "for example"),
        (checkpoint, ["--role", "teacher"], "it holds fake_score, student"),
        (checkpoint, ["--role", "fake_score", "--weights", "ema"], "no average"),
    ):
        assert cli.main(["consolidate", str(where), str(tmp_path / "out"), *options]) == cli.REFUSED
        assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
