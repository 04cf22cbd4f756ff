"""Asks the worker for layouts and writes what it found as a table.

python -m tests.parallel.layout_table docs/layout_equality.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.parallel.layouts import CASES, FAMILY_CASES, FAMILY_LAYOUTS, LAYOUTS, TOLERANCE

ROOT = Path(__file__).resolve().parents[2]
TABLE_CASES = {**CASES, **FAMILY_CASES}
TABLE = ROOT / "docs" / "layout_equality.md"
ONE = "1 rank, fp64"
"""The row that says what fp32 itself costs."""
NOT_RUN = "-"
"""Cell of a case that is not run under a layout."""

Report = Mapping[str, Any]
"""Of one layout: see ``layout_worker.Server.answer``."""


class LayoutFailure(Exception):
    """What the ranks of a layout said when it failed."""


class Worker:
    """The process of :mod:`tests.parallel.layout_worker`, from its start to the end of the block."""

    def __enter__(self) -> Self:
        launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        environment = {k: v for k, v in os.environ.items() if k not in launcher} | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.layout_worker"],
            env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()

    def ask(self, layout: str | None, cases: Sequence[str] = tuple(CASES), **variation: Any) -> Report:
        """Run cases under a layout (None: one rank) and compare them with one rank.

        Raises:
            LayoutFailure: a rank failed or hung.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(
            json.dumps({"layout": layout, "cases": list(cases), **variation}),
            file=self._process.stdin,
            flush=True,
        )
        line = self._process.stdout.readline()
        if not line:
            raise LayoutFailure(f"the worker died with exit status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise LayoutFailure(answer["error"])
        return answer["report"]


def differences(report: Report, case: str, phase: str, kinds: Sequence[str]) -> float:
    """Largest relative difference of these kinds of numbers."""
    worst = report[case]["worst"]
    return max(worst[f"{phase}/{kind}"][0] for kind in kinds)


def columns() -> list[tuple[str, str, str]]:
    """(heading, case, phase)"""
    found = []
    for case, of in TABLE_CASES.items():
        phases = ("student", "critics") if hasattr(of.method, "critics") else ("student",)
        found += [(f"{case} {phase}", case, phase) for phase in phases]
    return found + [(f"{case} weights", case, "end") for case in TABLE_CASES]


def cases(row: str) -> tuple[str, ...]:
    """Those of a row of the table."""
    return tuple(TABLE_CASES if row == ONE or row in FAMILY_LAYOUTS else CASES)


def cell(report: Report, case: str, phase: str) -> str:
    if case not in report:
        return NOT_RUN
    if phase == "end":
        return f"{differences(report, case, phase, ['weight']):.0e}"
    scalars, gradients = (differences(report, case, phase, k) for k in (["loss", "norm"], ["gradient"]))
    return f"{scalars:.0e} / {gradients:.0e}"


def write(reports: Mapping[str, Report], path: Path) -> None:
    """The table of ``reports``, rows in their order."""
    headings = ["layout", *(heading for heading, _, _ in columns())]
    rows = [
        [name, *(cell(report, case, phase) for _, case, phase in columns())]
        for name, report in reports.items()
    ]
    lines = [" | ".join(row) for row in (headings, ["---"] * len(headings), *rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT + "".join(f"| {line} |\n" for line in lines))


def read(path: Path) -> dict[str, dict[str, list[float]]]:
    """{layout: {column: numbers}} of a table."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    headings, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {
        row[0]: {
            heading: [float(number) for number in value.split(" / ")]
            for heading, value in zip(headings[1:], row[1:], strict=True)
            if value != NOT_RUN
        }
        for row in rows
    }


TEXT = f"""# The layout does not change the result

Largest relative difference between a layout and one rank, in fp32, over three optimiser steps (student,
critics, student; in KD three of the student) of small networks with every part that the real ones have, 4
samples a step in micro-batches of one. The difference of a tensor is its largest absolute difference over
its largest absolute value, and the worst tensor counts. Columns of a phase: losses and gradient norms /
gradients. Weights: those of all trained networks, and the student's average, after the third step.

The first row is no layout: one rank in fp64, with the reference operators instead of the fused ones, shows
what rounding to fp32 amounts to. Tests hold every layout to {TOLERANCE:.0e}, and copies of a tensor on
several ranks to the last bit.

TP, SP, PP, CP, DP: tensor, sequence, pipeline, context and data parallelism, with the number of ranks.
Neither the 3 frames nor, in DMD2, Predict2.5 and Transfer2.5, the 3 x 5 and 3 x 3 tokens of a frame can be
divided by the 2 or 4 ranks that share them; in KD a frame has 4 x 4. Transfer2.5, whose network is that of
Predict2.5 with control blocks, is run under some of the layouts; a dash stands for the others.

Written by `python -m tests.parallel.layout_table docs/layout_equality.md`; every whole run of the tests
writes its own to `build/layout_equality.md`.

"""


def main(path: Path) -> None:
    with Worker() as worker:
        reports = {ONE: worker.ask(None, cases(ONE), double=True)}
        for name in LAYOUTS:
            reports[name] = worker.ask(name, cases(name))
            print(f"{name}: {sum(case['seconds'] for case in reports[name].values()):.1f} s", flush=True)
    write(reports, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
