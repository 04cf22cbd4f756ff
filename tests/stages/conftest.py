"""The real command in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cosmos_distill

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "transfer1_kd_dmd2.py"
ENV = os.environ | {
    "PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",  # two threads wait for each other on a busy machine
    "TORCHDYNAMO_DISABLE": "1",  # megatron wraps helpers in torch.compile, which takes seconds at import
    "PYTHONWARNINGS": "ignore",
    "COLUMNS": "120",
}


def smoke(
    out: Path, *args: str, program: Sequence[str] = ("-m", "cosmos_distill"), recipe: Path = RECIPE
) -> subprocess.CompletedProcess[str]:
    """Run the smoke recipe in a process of its own."""
    command = [sys.executable, *program, str(recipe), "--scale", "smoke", "--out", str(out), *args]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=180)
