"""What the shell and the launcher leave in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.robustness.inputs import Input
from tests.robustness.kills import RECIPES


def _plan(folder: Path) -> Any:
    return [RECIPES["transfer1"], "--scale", "smoke", "--out", "out", "--dry-run"]


def _generate(folder: Path) -> Any:
    few = ("--stages.generate.pairs", "4", "--stages.generate.steps", "2", "--stages.generate.batch", "4")
    return [RECIPES["transfer1"], "--scale", "smoke", "--out", "out", "--only", "generate", *few]


def _drawn(folder: Path) -> bool:
    return len(list(folder.glob("out/generate/pairs/pairs-*.safetensors"))) == 1


INPUTS = {
    "WORLD_SIZE a word": Input(_plan, ("WORLD_SIZE", "two"), environment={"WORLD_SIZE": "two"}, quick=True),
    "WORLD_SIZE 0": Input(_plan, ("WORLD_SIZE",), environment={"WORLD_SIZE": "0"}, quick=True),
    "WORLD_SIZE negative": Input(_plan, ("WORLD_SIZE",), environment={"WORLD_SIZE": "-2"}, quick=True),
    "WORLD_SIZE empty": Input(_plan, ("WORLD_SIZE",), environment={"WORLD_SIZE": ""}, quick=True),
    "RANK a word": Input(_plan, ("RANK",), environment={"WORLD_SIZE": "2", "RANK": "first"}, quick=True),
    "RANK beyond the world": Input(
        _plan, ("RANK",), environment={"WORLD_SIZE": "2", "RANK": "7"}, quick=True
    ),
    "sample under torchrun": Input(
        lambda folder: ["sample", "x.safetensors"],
        ("torchrun",),
        environment={"WORLD_SIZE": "2", "RANK": "0"},
        quick=True,
    ),
    "consolidate under torchrun": Input(
        lambda folder: ["consolidate", "checkpoint", "out.safetensors"],
        ("torchrun",),
        environment={"WORLD_SIZE": "2", "RANK": "0"},
        quick=True,
    ),
    "backend unknown": Input(_generate, ("abacus",), environment={"COSMOS_DISTILL_BACKEND": "abacus"}),
    "no HOME": Input(_generate, right=_drawn, environment={"HOME": None}),
    "HOME that does not exist": Input(_generate, right=_drawn, environment={"HOME": "/nonexistent"}),
    "no temporary folder": Input(_generate, right=_drawn, environment={"TMPDIR": "/nonexistent"}),
    "no terminal": Input(_generate, right=_drawn, environment={"TERM": None, "COLUMNS": "0"}),
    "terminal of one column": Input(_generate, right=_drawn, environment={"TERM": "xterm", "COLUMNS": "1"}),
    "language without UTF-8": Input(_generate, right=_drawn, environment={"LC_ALL": "C", "LANG": "C"}),
}
