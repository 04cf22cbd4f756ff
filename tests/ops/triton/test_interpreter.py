"""The operators' Triton kernels, run by Triton's interpreter in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosmos_distill import ops
from cosmos_distill.ops import registry
from cosmos_distill.ops.registry import BackendUnavailable

FOLDER = Path(__file__).parent / "interpreted"
ROOT = Path(__file__).parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this process runs them itself")
@pytest.mark.needs("triton")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "--durations=0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop(registry.VARIABLE, None)
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if run.returncode != 0:
        pytest.fail(f"{run.stdout}\n{run.stderr}", pytrace=False)
    passed = re.search(r"(\d+) passed", run.stdout)
    files = len(list(FOLDER.glob("test_*.py")))
    assert passed is not None and int(passed[1]) >= files and "skipped" not in run.stdout, run.stdout


@pytest.mark.skipif(INTERPRETED, reason="here the interpreter serves the CPU")
def test_without_the_interpreter_a_cpu_is_refused_with_the_reason():
    x, m = torch.zeros(1, 2, 4), torch.zeros(1, 4)
    with pytest.raises(
        BackendUnavailable, match=r"triton: it serves cuda tensors, not cpu.*TRITON_INTERPRET=1"
    ):
        ops.adaln_modulate(x, m, m, backend="triton")
