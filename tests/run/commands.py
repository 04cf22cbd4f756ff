"""The real command in a process of its own, alone or under the killer."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cosmos_distill

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "transfer1_kd_dmd2.py"
SMOKE = Path(cosmos_distill.__file__).with_name("weights") / "transfer1-smoke.safetensors"
"""The shipped teacher of that recipe's smoke scale."""
PREDICT25 = RECIPE.with_name("predict25_dmd2_4step.py")
ENV = os.environ | {
    "PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",  # two threads wait for each other on a busy machine
    "TORCHDYNAMO_DISABLE": "1",  # megatron wraps helpers in torch.compile, which takes seconds at import
    "PYTHONWARNINGS": "ignore",
    "COLUMNS": "120",
}

MOMENTS = ("generate", "kd-interrupt", "kd-checkpoint", "dmd2", "none")
KILLER = str(Path(__file__).with_name("killer.py"))
QUICK = str(Path(__file__).with_name("quick.py"))


def said_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error, without its frame."""
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def smoke(
    out: Path, *args: str, program: Sequence[str] = (QUICK,), recipe: Path = RECIPE
) -> subprocess.CompletedProcess[str]:
    """Run the smoke recipe in a process of its own."""
    command = [sys.executable, *program, str(recipe), "--scale", "smoke", "--out", str(out), *args]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=600)


def ended(killer: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Exit status of every run of the killer, by moment."""
    lines = [line.split() for line in killer.stderr.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[0] in MOMENTS}


def losses(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "wall"} for line in lines]
