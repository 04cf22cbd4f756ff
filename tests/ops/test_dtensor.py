"""DTensor: the operators on shards, without a word between the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops import dtensor_worker


@pytest.mark.compiled
def test_shards_give_what_whole_tensors_give(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, dtensor_worker.__file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    held = (tmp_path / "held").read_text().splitlines()
    assert {name.partition(",")[0] for name in held} >= {
        "adaln_modulate",
        "gated_residual_adaln",
        "qk_norm_rope",
        "attention",
        "vsd_loss",
        "fake_score_loss",
        "renoise",
    }


def test_importing_the_operators_imports_no_distributed_tensors():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from cosmos_distill import ops\n"
        "m = torch.zeros(1, 4); ops.adaln_modulate(torch.zeros(1, 2, 4), m, m)\n"
        "print([n for n in sys.modules if n.startswith(('torch.distributed.tensor', 'torch._dynamo.'))"
        " and n not in before])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
