"""The tables of docs/howto/operators.md and benchmarks/README.md, taken from results/cpu.json.

They stand between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. `make bench` writes them anew;
tests/test_benchmark_tables.py fails where they differ from what is recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Row

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "results" / "cpu.json"
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
SHOWN = ("Transfer1-7B 1x2048x4096", "1x16x24x88x160")
"""What the overview shows of operators that are measured at several sizes."""
WITH_GOALS = (*SHOWN, "Predict2.5-2B 1x16x256x2048", "Predict2.5-14B 1x16x100x5120")


class Goal(NamedTuple):
    compiled: float
    eager: float
    share: float | None = None


BF16 = Goal(1.6, 2.5)
VSD = "vsd_loss, guided, raw outputs"
GOALS = {
    ("adaln_modulate", "float32", "fwd"): Goal(1.8, 4, 0.9),
    ("adaln_modulate", "float32", "fwd+bwd"): Goal(3, 3.5),
    ("gated_residual_adaln", "float32", "fwd"): Goal(1.5, 3.5, 0.9),
    ("gated_residual_adaln", "float32", "fwd+bwd"): Goal(2.5, 3.5),
    ("qk_norm_rope", "float32", "fwd"): Goal(1.8, 10, 0.85),
    ("qk_norm_rope", "float32", "fwd+bwd"): Goal(2, 8),
    (VSD, "float32", "fwd+bwd"): Goal(2, 8, 0.85),
    **{
        (name, "bfloat16", mode): BF16
        for name in ("adaln_modulate", "gated_residual_adaln", "qk_norm_rope", VSD)
        for mode in ("fwd", "fwd+bwd")
    },
}


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def goals(rows: list[Row]) -> str:
    """What is reached of every goal, at every size of the published networks."""

    def reached(value: float | None, goal: float | None, write: Callable[[float], str]) -> str:
        if value is None or goal is None:
            return ""
        return f"{write(value)} of {write(goal)}" + (" (missed)" if value < goal else "")

    lines = []
    for row in _with_goals(rows):
        goal = GOALS[row.name, row.dtype, row.mode]
        ratios = [(row.ratios["compile"], goal.compiled), (row.ratios["eager"], goal.eager)]
        texts = [reached(value, wanted, "{:.2f}".format) for value, wanted in ratios]
        share = reached(row.copy_share, goal.share, percent)
        lines.append([row.name, row.size, SHORT[row.dtype], row.mode, *texts, share])
    return markdown(["operator", "shape", "dtype", "pass", "vs compile", "vs eager", "share of copy"], lines)


def _with_goals(rows: list[Row]) -> list[Row]:
    found = {(row.name, row.dtype, row.mode, row.size): row for row in rows}
    keys = [(*goal, size) for size in WITH_GOALS for goal in GOALS]
    return [found[key] for key in keys if key in found]


def overview(rows: list[Row]) -> str:
    """Every operator at one size, the published networks' mostly."""
    return markdown(
        ["operator", "shape", "dtype", "pass", "vs eager", "vs torch.compile", "share of copy bandwidth"],
        [
            [row.name, row.size.split()[-1], SHORT[row.dtype], row.mode]
            + [f"{row.ratios['eager']:.2f}", f"{row.ratios['compile']:.2f}", percent(row.copy_share)]
            for row in rows
            if row.size in SHOWN or " " not in row.size
        ],
    )


TABLES = {
    "goals": (ROOT / "benchmarks" / "README.md", goals),
    "overview": (ROOT / "docs" / "howto" / "operators.md", overview),
}


def recorded() -> tuple[str, list[Row]]:
    """The machine, and its rows."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return record["machine"], [Row(**one) for one in record["rows"]]


def renewed(name: str, text: str) -> str:
    """The text with table ``name`` as the record has it."""
    machine, rows = recorded()
    block = f"<!-- {name} -->\n{machine}:\n\n{TABLES[name][1](rows)}\n<!-- end of {name} -->"
    pattern = f"<!-- {name} -->.*?<!-- end of {name} -->"
    text, count = re.subn(pattern, lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"there must be one table {name!r} between its marks, not {count}")
    return text


def write() -> None:
    """Renew all tables, unless the record lacks some of what they need."""
    _, rows = recorded()
    if GOALS.keys() <= {(row.name, row.dtype, row.mode) for row in rows if row.size in SHOWN}:
        for name, (path, _) in TABLES.items():
            path.write_text(renewed(name, path.read_text(encoding="utf-8")), encoding="utf-8")
