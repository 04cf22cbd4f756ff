"""`cosmos-distill doctor` within seconds, and what it says of a kernel that is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.cli import commands
from cosmos_distill.ops import doctor
from cosmos_distill.ops.doctor import kernels
from cosmos_distill.ops.doctor.cases import Case, cases, draw
from cosmos_distill.ops.doctor.clock import Clock
from cosmos_distill.ops.doctor.report import as_html, as_text


def test_ends_in_time_and_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    json_file, html_file = tmp_path / "found.json", tmp_path / "found.html"
    status = commands.main(["doctor", "--budget", "1s", "--json", str(json_file), "--html", str(html_file)])
    assert status == 0
    found = json.loads(json_file.read_text())
    assert [s["state"] for s in found["sections"]][:2] == ["done", "done"]
    assert found["sections"][-1]["state"] == "left out" and found["sections"][-1]["notes"]
    versions = {row["what"]: row["found"] for row in found["sections"][0]["rows"]}
    assert versions["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and "(left out)" in printed and "of 1 s" in printed
    assert torch.__version__ in html_file.read_text()


def test_who_serves_is_what_the_registry_picks():
    section: dict[str, Any] = {"rows": [], "notes": []}
    kernels.serving(section, Clock(60))
    row = next(r for r in section["rows"] if (r["operator"], r["dtype"]) == ("attention", "fp32"))
    assert row["served by"] == "sdpa" and "triton: it serves cuda tensors, not cpu" in row["not by"]


def test_kernels_are_tried_and_right():
    chosen = [next(c for c in cases() if c.operator == name) for name in ("attention_lse", "vsd_loss")]
    section: dict[str, Any] = {"rows": [], "notes": []}
    kernels.compared(section, Clock(60), chosen)
    assert {row["operator"] for row in section["rows"]} >= {"attention_lse"}
    assert {row["state"] for row in section["rows"]} == {"right"}, section
    assert {row["dtype"] for row in section["rows"]} == {"fp32", "bf16", "fp16"}


def test_a_wrong_kernel_is_found_and_said():
    def wrong(*qkv: Tensor, backend: str) -> Tensor:
        out = ops.attention(*qkv, backend=backend)
        return out if backend == "reference" else out * (1 + 1e-3)

    qkv = draw(1, 5, 2, 8), draw(1, 7, 2, 8), draw(1, 7, 2, 8, seed=1)
    section: dict[str, Any] = {"title": "Kernels", "state": "done", "rows": [], "notes": []}
    kernels.compared(section, Clock(60), [Case("attention", "small", wrong, qkv, heads=True)])
    fp32 = next(r for r in section["rows"] if (r["backend"], r["dtype"]) == ("sdpa", "fp32"))
    assert fp32["state"] == "wrong"
    assert any("attention sdpa fp32, small: off by" in note for note in section["notes"])
    found = {"sections": [section], "wrong": 1, "took_s": 1.0, "budget_s": 2.0}
    assert "1 wrong" in as_text(found) and "class='wrong'" in as_html(found)


def test_what_fails_hides_nothing_else(monkeypatch: pytest.MonkeyPatch):
    def broken(section: dict[str, Any], clock: Clock) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(kernels, "serving", broken)
    found = doctor.examine(0.5)
    assert found["sections"][0]["state"] == "done"
    assert found["sections"][1] | {"seconds": 0} == {
        "title": "Who serves which operator",
        "rows": [],
        "notes": ["RuntimeError: no such device"],
        "state": "failed",
        "seconds": 0,
    }


def test_budgets():
    assert [doctor.budget(t) for t in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
    for wrong in ("", "soon", "-1", "0s"):
        with pytest.raises(argparse.ArgumentTypeError, match="a time such as"):
            doctor.budget(wrong)
