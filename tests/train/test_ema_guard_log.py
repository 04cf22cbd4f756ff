"""The small parts: average, guard, stop flag, log."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from cosmos_distill.config import Optim
from cosmos_distill.train import ema
from cosmos_distill.train.ema import EMA, constant, power
from cosmos_distill.train.guard import NonFinite, NonFiniteError, StopFlag
from cosmos_distill.train.log import RunLog, read, truncate_after
from cosmos_distill.train.optim import RoleOptimizer
from tests.train.fakes import Network


def test_average_is_the_formula_in_fp32() -> None:
    network = Network(0).bfloat16()
    masters = {name: p.detach().float().clone() for name, p in network.named_parameters()}
    ema = EMA(masters, constant(0.75))
    expected = masters["first.weight"].double()
    for step in range(4):
        masters["first.weight"] += 1e-4 * (step + 1)
        ema.update()
        expected = 0.75 * expected + 0.25 * masters["first.weight"].double()
    torch.testing.assert_close(ema.average["first.weight"].double(), expected, rtol=1e-6, atol=1e-7)
    assert ema.average["first.weight"].dtype == torch.float32


def test_power_average_has_the_published_decays_and_profile() -> None:
    decay = power(0.1)
    published = {10: 0.469, 100: 0.924, 300: 0.974, 1500: 0.9947}
    for n, value in published.items():
        assert decay(n) == pytest.approx(value, abs=6e-4), n
    assert decay(0) == 0.0  # the average begins with the first trained weights, not with the initial ones
    weights = {"w": torch.zeros(200, dtype=torch.float64)}
    ema = EMA(weights, decay)
    for n in range(200):  # weights e_n: the average shows how much each step counts
        weights["w"].zero_()[n] = 1.0
        ema.update()
    at = torch.arange(200, dtype=torch.float64) / 200
    mean = float(at @ ema.average["w"])
    width = math.sqrt(float((at - mean).square() @ ema.average["w"]))
    assert float(ema.average["w"].sum()) == pytest.approx(1.0) and width == pytest.approx(0.1, rel=0.02)
    with pytest.raises(ValueError, match="relative width"):
        power(0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_is_lent_to_the_network_and_taken_back_after_an_error(dtype: torch.dtype) -> None:
    network = Network(0).to(dtype)
    own = network.first.weight.detach().clone()
    optimizer = RoleOptimizer(network, Optim(lr=1.0), 1)
    ema = EMA(optimizer.masters, constant(0.5))
    ema.average["first.weight"] += 1 + 2**-12
    with pytest.raises(RuntimeError, match="in the block"), ema.applied_to(optimizer):
        assert torch.equal(network.first.weight, ema.average["first.weight"].to(dtype))
        raise RuntimeError("in the block")
    assert torch.equal(network.first.weight, own)
    assert torch.equal(optimizer.masters["first.weight"], own.float())


def test_rank_that_fails_with_the_average_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = RoleOptimizer(Network(0), Optim(lr=1.0), 1)
    average = EMA(optimizer.masters, constant(0.5))
    collective: list[int] = []
    monkeypatch.setattr(optimizer, "write", lambda values: collective.append(len(values)))
    monkeypatch.setattr(ema.groups, "world_group", lambda: SimpleNamespace(size=lambda: 2))
    with pytest.raises(RuntimeError, match="here alone"), average.applied_to(optimizer):
        raise RuntimeError("here alone")
    assert len(collective) == 1  # going in, and not coming out
    with average.applied_to(optimizer):
        pass
    assert len(collective) == 3


def test_average_refuses_bad_decay() -> None:
    with pytest.raises(ValueError, match="below 1, not 1"):
        EMA({"w": torch.zeros(2)}, constant(1.0))


def test_guard_counts_only_in_a_row() -> None:
    guard = NonFinite(3)
    for step in range(2):
        guard.bad(["student"], step, "loss/kd")
    guard.good(["student"])
    for step in range(2):
        guard.bad(["student"], step, "loss/kd")
    said = r"loss/vsd was not finite in 3 steps in a row of student \(the last is step 9\).*no checkpoint is"
    with pytest.raises(NonFiniteError, match=said):
        guard.bad(["student"], 9, "loss/vsd")
    assert guard.total == guard.skipped["student"] == 5


def test_guard_counts_the_turns_of_a_role_by_themselves() -> None:
    guard, critics = NonFinite(3), ["fake_score", "discriminator"]
    for step in range(0, 10, 5):
        guard.bad(["student"], step, "loss/vsd")
        for _ in range(4):
            guard.good(critics, left_out=1)
    guard.bad(critics, 9, "loss/gan_discriminator")
    again = NonFinite(3)
    again.restore(guard.total, json.loads(json.dumps(guard.state())))
    assert again.record() == guard.record() == {
        "skipped": 3,
        "skipped/student": 2,
        "skipped/fake_score": 1,
        "skipped/discriminator": 1,
        "left_out/fake_score": 8,
        "left_out/discriminator": 8,
    }  # fmt: skip
    with pytest.raises(NonFiniteError, match="loss/vsd was not finite in 3 steps in a row of student"):
        again.bad(["student"], 10, "loss/vsd")


def test_guard_goes_on_from_a_checkpoint_without_counts_by_role() -> None:
    guard = NonFinite(2)
    guard.restore(7, {})
    assert guard.record() == {"skipped": 7}
    guard.bad(["student"], 8, "loss/kd")
    with pytest.raises(NonFiniteError, match="2 steps in a row of student"):
        guard.bad(["student"], 9, "loss/kd")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_stops_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in StopFlag.signals]
    with pytest.raises(KeyboardInterrupt), StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.name == number.name
        os.kill(os.getpid(), number)
    assert [signal.getsignal(n) for n in StopFlag.signals] == before


def test_under_torchrun_a_signal_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopFlag() as stop:
        for _ in range(2):  # the terminal's, and what torchrun makes of it
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_log_is_cut_behind_the_step_and_behind_damage(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = '{"step": 2, "a": 1}\n{"step": 2, "nonfinite": "loss/kd"}\n{"step": 4}\n'
    for content, step, kept in (
        (whole + '{"step": 6}\n', 4, 3),
        (whole + '{"step": 4, "ha', 4, 3),
        (whole, 3, 2),
        (whole, 0, 0),
        ("no json\n" + whole, 4, 0),
    ):
        path.write_text(content)
        truncate_after(path, step)
        assert len(path.read_text().splitlines()) == kept
    truncate_after(tmp_path / "missing", 3)
    assert read(tmp_path / "missing") == []


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_line_per_record_or_a_bar(terminal: bool, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    log = RunLog(tmp_path, 0, 10, "KD", console)
    log.record(5, 1.0, {"loss/kd": 0.125, "lr/student": 1e-3, "skipped": 0})
    log.advance(5)
    log.say("step 6 skipped [loss/kd]")
    log.close()
    text = out.getvalue()
    assert "kd 0.125" in text and "step 6 skipped [loss/kd]" in text
    assert "5/10" in text
    assert ("\x1b[" in text) == terminal
    assert read(tmp_path / "log.jsonl") == [
        {"step": 5, "wall": 1.0, "loss/kd": 0.125, "lr/student": 1e-3, "skipped": 0}
    ]
