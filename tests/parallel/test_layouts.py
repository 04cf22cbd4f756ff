"""Losses, gradients and weights of the recipes' training steps are those of one rank, under every layout."""

from __future__ import annotations

import math

import pytest
import torch

from tests.parallel import layout_table
from tests.parallel.layout_table import ONE, ROOT, TABLE, LayoutFailure, Report, Worker, columns
from tests.parallel.layout_worker import relative
from tests.parallel.layouts import (
    CASES,
    FAMILY_CASES,
    FAMILY_LAYOUTS,
    LAYOUTS,
    METHOD_CASES,
    METHOD_LAYOUTS,
    TOLERANCE,
)


@pytest.fixture(scope="module")
def worker():
    with Worker() as process:
        yield process


@pytest.fixture(scope="module")
def reports():
    """By row of the table, which is written when all are there."""
    found: dict[str, Report] = {}
    yield found
    rows = [ONE, *LAYOUTS]
    if all(set(layout_table.cases(row)) <= found.get(row, {}).keys() for row in rows):
        layout_table.write({row: found[row] for row in rows}, ROOT / "build" / TABLE.name)


def worst(report: Report) -> dict[str, tuple[float, str]]:
    """{case/phase/kind: (largest relative difference, of which tensor)}"""
    return {f"{case}/{of}": tuple(x) for case, r in report.items() for of, x in r["worst"].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_what_one_rank_gives(worker, reports, layout):
    report = worker.ask(layout)
    reports[layout] = {**reports.get(layout, {}), **report}
    too_far = {of: found for of, found in worst(report).items() if not found[0] <= TOLERANCE}
    assert not too_far, too_far
    # Ranks that hold the same tensors go on holding the same: to the last bit, or they would drift apart.
    assert not any(r["copies"] for r in report.values()), {c: r["copies"][:5] for c, r in report.items()}
    assert all(report[case]["worst"]["start/weight"][0] == 0 for case in CASES)


@pytest.mark.parametrize("layout", FAMILY_LAYOUTS)
def test_a_layout_gives_the_same_of_later_families(worker, reports, layout):
    report = worker.ask(layout, tuple(FAMILY_CASES))
    reports[layout] = {**reports.get(layout, {}), **report}
    too_far = {of: found for of, found in worst(report).items() if not found[0] <= TOLERANCE}
    assert not too_far, too_far
    for case, found in report.items():
        assert not found["copies"] and found["worst"]["start/weight"][0] == 0, case


@pytest.mark.parametrize("layout", METHOD_LAYOUTS)
def test_a_layout_gives_the_same_of_later_methods(worker, layout):
    report = worker.ask(layout, tuple(METHOD_CASES))
    too_far = {of: found for of, found in worst(report).items() if not found[0] <= TOLERANCE}
    assert not too_far, too_far
    for case, found in report.items():
        assert not found["copies"] and found["worst"]["start/weight"][0] == 0, case


def test_a_tolerance_that_only_rounding_meets(worker, reports):
    """fp32 is about this far from fp64, and runs that differ are far beyond."""
    reports[ONE] = worker.ask(None, layout_table.cases(ONE), double=True)
    double = worst(reports[ONE])
    assert all(found < 10 * TOLERANCE for found, _ in double.values())
    assert all(found > TOLERANCE / 100 for of, (found, _) in double.items() if of.endswith("gradient"))
    other = worst(worker.ask(None, seed=9))
    assert all(found > 1e3 * TOLERANCE for found, _ in other.values())


def test_weights_move(worker):
    """By much more than the tolerance, and all that are trained, so that comparing them says something."""
    moved = {case: report["moved"] for case, report in worker.ask(None).items()}
    for case, of in moved.items():
        still = {name for name, how_far in of.items() if how_far == 0}
        frozen = {name for name in of if ".text_projection." in name}
        assert still == frozen, case
        networks = {name: far for name, far in of.items() if not name.startswith("discriminator")}
        assert min(far for name, far in networks.items() if name not in frozen) > 50 * TOLERANCE, case


@pytest.mark.parametrize(
    ("layout", "case", "plant"),
    [
        ("TP2", "KD", "shares of tensor ranks are not added"),
        ("PP2", "KD", "shares of pipeline ranks are not added"),
        ("DP2", "KD", "one sum forgotten"),
        ("DP2", "KD", "the same samples on all ranks"),
        ("CP2 ring", "Predict2.5", "padding attended"),
    ],
)
def test_a_mistake_is_found(worker, layout, case, plant):
    report = worker.ask(layout, [case], plant=plant)
    found = worst(report)
    assert found[f"{case}/student/gradient"][0] > 1e3 * TOLERANCE
    assert found[f"{case}/end/weight"][0] > 10 * TOLERANCE


@pytest.mark.parametrize("layout", ["TP2", "CP2 ring", "PP2 x DP2 sharded optimizer", "PP2 x FSDP2"])
def test_copies_cannot_drift(worker, layout):
    """What one rank's kernels make of a gradient that others compute as well is nowhere left over."""
    report = worker.ask(layout, ["DMD2"], plant="the last rank's copies drift")
    assert not report["DMD2"]["copies"]
    assert max(found for found, _ in worst(report).values()) <= TOLERANCE


def test_a_nan_is_infinitely_far():
    assert relative(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf


def test_a_failing_rank_is_reported(worker):
    with pytest.raises(LayoutFailure, match=r"(?s)^rank 1:\nTraceback.*RuntimeError: planted"):
        worker.ask("DP2", ["KD"], plant="the last rank fails")


def test_the_documented_table_is_of_these_layouts():
    table = layout_table.read(TABLE)
    assert list(table) == [ONE, *LAYOUTS]
    for layout, row in table.items():
        run = layout_table.cases(layout)
        assert list(row) == [heading for heading, case, _ in columns() if case in run], layout
        limit = 10 * TOLERANCE if layout == ONE else TOLERANCE
        assert all(number <= limit for numbers in row.values() for number in numbers), layout
