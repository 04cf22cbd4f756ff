"""Accumulation, phases, the non-finite guard, grids and the final file."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos_distill.config import Optim, Trainer
from cosmos_distill.methods.base import Noise
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.fingerprint import ResumeError
from cosmos_distill.train.guard import NonFiniteError
from cosmos_distill.train.log import read
from cosmos_distill.train.loop import FitResult, fit
from tests.train.fakes import SHAPE, Network, Toy, ToyMethod, ToySource, trainer


def run(
    folder: Path, method: ToyMethod | None = None, settings: Trainer | None = None, **more: Any
) -> FitResult:
    return fit(method or ToyMethod(), ToySource(), settings or trainer(), folder, seed=7, **more)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_micro_batch_does_not_change_the_run(tmp_path: Path) -> None:
    results = []
    for micro in (1, 4):
        folder = tmp_path / str(micro)
        run(folder, settings=trainer(micro_batch=micro, log_every=1))
        results.append((read(folder / "log.jsonl"), load_file(folder / "student.safetensors")))
    (one_log, one), (four_log, four) = results
    for a, b in zip(one_log, four_log, strict=True):
        for key in a.keys() - {"wall"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), key
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-4, atol=1e-6)


def test_first_student_step_is_adamw_on_the_global_mean(tmp_path: Path) -> None:
    optim = Optim(lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, clip_norm=0.05)
    expected = Network(0)
    adamw = torch.optim.AdamW(expected.parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    loss = (expected(Noise(7, 0, 0, 4).normal("x", SHAPE)) - ToySource().batch(0, 4).latents).square().mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
    adamw.step()

    method = ToyMethod(Toy(student=optim))
    run(tmp_path, method, trainer(max_steps=1, log_every=1))

    record = read(tmp_path / "log.jsonl")[0]
    assert record["loss/kd"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["grad_norm/student"] == pytest.approx(float(norm), rel=1e-5)  # before clipping
    assert record["grad_norm/student"] > 0.05
    assert record["lr/student"] == 1e-2
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(method.roles["student"].state_dict()[name], value)


def test_only_the_role_in_turn_moves_and_the_average_follows_the_student(tmp_path: Path) -> None:
    before: dict[str, dict[str, Tensor]] = {}
    averages: list[dict[str, Tensor]] = []
    method = ToyMethod()
    start = {role: weights(network) for role, network in method.roles.items()}
    moved = []

    def look(step: int) -> None:
        # Inside the grid the student holds its average.
        averages.append(weights(method.roles["student"]))
        moved.append(not same(weights(method.roles["critic"]), before.get("critic", start["critic"])))
        before["critic"] = weights(method.roles["critic"])

    run(tmp_path, method, trainer(sample_every=1, max_steps=6), sampler_grid=look)

    assert moved == [False, True, True, False, True, True]
    unchanged = [same(a, b) for a, b in itertools.pairwise(averages)]
    assert unchanged == [True, True, False, True, True]
    assert same(weights(method.roles["teacher"]), start["teacher"])
    assert all(p.grad is None for network in method.roles.values() for p in network.parameters())


def test_a_role_moves_towards_another_after_that_ones_step(tmp_path: Path) -> None:
    class Following(ToyMethod):
        def alignments(self, roles):
            return {"critic": ("student", 0.25)} if "student" in roles else {}

    method = Following()
    start = weights(method.roles["critic"])
    run(tmp_path, method, trainer(max_steps=1, ema_decay=None))
    student, critic = weights(method.roles["student"]), weights(method.roles["critic"])
    for name, before in start.items():
        torch.testing.assert_close(critic[name], 0.25 * before + 0.75 * student[name])
    assert not same(critic, start)


def test_grid_leaves_no_trace(tmp_path: Path) -> None:
    steps: list[int] = []

    def grid(step: int) -> None:
        steps.append(step)
        assert not torch.is_grad_enabled()
        torch.rand(100)

    run(tmp_path / "with", ToyMethod(dropout=0.2), sampler_grid=grid)
    run(tmp_path / "without", ToyMethod(dropout=0.2))
    assert steps == [4, 8, 9]
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("with", "without")]
    assert files[0] == files[1]


def test_student_file_holds_the_average_or_else_the_student(tmp_path: Path) -> None:
    for decay, name in ((0.9, "ema"), (None, "student")):
        method = ToyMethod()
        result = run(tmp_path / name, method, trainer(ema_decay=decay))
        saved = load_file(result.student)
        assert saved.keys() == method.roles["student"].state_dict().keys()
        assert same(saved, method.roles["student"].state_dict()) == (decay is None)
        assert read_metadata(result.student) == {"method": "Toy", "step": 9, "weights": name}
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nonfinite_step_is_skipped_whole_and_named(value: str, tmp_path: Path) -> None:
    method = ToyMethod(norm=True)
    method.bad = {3: value}
    states: dict[int, dict[str, Tensor]] = {}
    settings = trainer(sample_every=1, ema_decay=None, log_every=1)
    result = run(
        tmp_path,
        method,
        settings,
        sampler_grid=lambda step: states.update({step: weights(method.roles["student"])}),
    )
    assert same(states[3], states[4])  # batch norm's running statistics included
    assert not same(states[6], states[7])
    assert result.skipped == 1
    records = read(tmp_path / "log.jsonl")
    bad = [r for r in records if "nonfinite" in r]
    assert [(r["step"], r["nonfinite"], r["skipped"]) for r in bad] == [(4, "loss/kd", 1)]
    assert records[-1]["skipped"] == 1
    assert all(torch.isfinite(v).all() for v in load_file(result.student).values() if v.is_floating_point())


def test_nonfinite_gradient_of_a_finite_loss_is_caught(tmp_path: Path) -> None:
    method = ToyMethod()
    parameter = method.roles["student"].get_parameter("last.weight")
    calls = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * float("nan") if len(calls) == 3 else gradient  # second student step, first half

    parameter.register_hook(spoil)
    assert run(tmp_path, method).skipped == 1
    assert [r["nonfinite"] for r in read(tmp_path / "log.jsonl") if "nonfinite" in r] == ["grad_norm/student"]
    assert torch.isfinite(parameter).all()


def test_too_many_in_a_row_stop_with_an_intact_checkpoint(tmp_path: Path) -> None:
    method = ToyMethod()
    method.bad = {4: "nan", 5: "nan", 7: "nan"}  # steps of the critic; between them one of the student, good
    settings = trainer(max_nonfinite=3, save_every=2)
    with pytest.raises(
        NonFiniteError, match=r"fake_score was not finite in 3 steps in a row of critic.*step 7"
    ):
        run(tmp_path, method, settings)
    assert not (tmp_path / "student.safetensors").exists()
    resumed = run(tmp_path, ToyMethod(), settings)
    assert resumed.resumed_from == 6
    assert resumed.skipped == 2  # steps 4 and 5 before the checkpoint; 7 went well this time
    assert resumed.skipped_by_role == {"critic": 2}


STUDENT_TURNS = (0, 3, 6, 9, 12, 15)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_student_that_is_never_finite_ends_the_stage_whatever_the_critic_does(
    value: str, tmp_path: Path
) -> None:
    method = ToyMethod()
    method.bad = dict.fromkeys(STUDENT_TURNS, value)
    said = r"loss/kd was not finite in 5 steps in a row of student \(the last is step 12\)"
    with pytest.raises(NonFiniteError, match=said):
        run(tmp_path, method, trainer(max_steps=18))
    assert read(tmp_path / "log.jsonl")[-1]["skipped/student"] == 5
    assert not (tmp_path / "student.safetensors").exists()


def test_stage_whose_student_took_no_step_is_not_complete_however_short(tmp_path: Path) -> None:
    settings, method = trainer(max_steps=6), ToyMethod()
    method.bad = dict.fromkeys(STUDENT_TURNS, "nan")
    said = r"student took not one step in all 6 steps.*loss/kd was never finite in its 2 steps.*step 3\)"
    for _ in range(2):  # the second time from the checkpoint of the last step
        with pytest.raises(NonFiniteError, match=said):
            run(tmp_path, method, settings)
        assert not (tmp_path / "student.safetensors").exists()
    method = ToyMethod()
    method.bad = {0: "nan"}
    assert run(tmp_path / "one", method, settings).skipped_by_role == {"student": 1}


def test_student_without_a_turn_is_not_complete(tmp_path: Path) -> None:
    class Late(ToyMethod):
        def phase(self, step: int) -> tuple[str, ...]:
            return ("critic",)

    with pytest.raises(NonFiniteError, match="student had no phase in all 4 steps"):
        run(tmp_path, Late(), trainer(max_steps=4))


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_step_without_a_single_sample_is_a_bad_step(micro_batch: int, tmp_path: Path) -> None:
    settings = trainer(max_steps=9, global_batch=6, micro_batch=micro_batch, log_every=1, max_nonfinite=3)
    method = ToyMethod()
    method.left_out = {0: 1, 3: 6, 6: 5}
    result = run(tmp_path / "some", method, settings)
    assert (result.skipped_by_role, result.left_out) == ({"student": 1}, {"student": 6})
    bad = [r for r in read(tmp_path / "some" / "log.jsonl") if "nonfinite" in r]
    assert [(r["step"], r["nonfinite"], r["skipped/student"]) for r in bad] == [(4, "loss/kd", 1)]
    method = ToyMethod()
    method.left_out = dict.fromkeys(STUDENT_TURNS, 6)
    with pytest.raises(NonFiniteError, match="loss/kd was not finite in 3 steps in a row of student"):
        run(tmp_path / "all", method, settings)


def test_counts_by_role_go_on_over_a_resume(tmp_path: Path) -> None:
    settings = trainer(max_steps=18, max_nonfinite=4, save_every=1)
    logs = []
    for name, halves in (("whole", (18,)), ("halves", (8, 18))):
        for steps in halves:
            method = ToyMethod()
            method.left_out, method.bad = {0: 2, 6: 1}, {3: "nan", 9: "nan", 10: "nan", 12: "inf"}
            result = run(tmp_path / name, method, replace(settings, max_steps=steps))
        assert result.skipped_by_role == {"student": 3, "critic": 1}
        assert result.left_out == {"student": 3}
        kept = [{k: v for k, v in r.items() if k != "wall"} for r in read(tmp_path / name / "log.jsonl")]
        logs.append(kept[-1])
        method.bad |= {15: "nan"}
    assert logs[0] == logs[1]


@pytest.mark.parametrize("every", ["log_every", "save_every", "sample_every"])
def test_interval_of_zero_is_never(every: str, tmp_path: Path) -> None:
    steps: list[int] = []
    result = run(tmp_path, settings=trainer(**{every: 0}, keep_every=0), sampler_grid=steps.append)
    assert load_file(result.student)
    lines = len(read(tmp_path / "log.jsonl"))
    saved = len(list((tmp_path / "checkpoints").glob("step_*")))
    assert lines == (1 if every == "log_every" else 5)
    assert saved == (1 if every == "save_every" else 2)
    assert steps == ([] if every == "sample_every" else [4, 8, 9])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": Toy(student=Optim(lr=2e-2))}, "method.student.lr was 0.01 and is now 0.02"),
        ({"method": Toy(every=2)}, "method.every was 3 and is now 2"),
        ({"settings": trainer(global_batch=8)}, "trainer.global_batch was 4 and is now 8"),
        ({"settings": trainer(ema_decay=0.5)}, "trainer.ema_decay was 0.9 and is now 0.5"),
        ({"seed": 8}, "seed was 7 and is now 8"),
        ({"settings": trainer(max_steps=3)}, "at step 9, beyond max_steps 3"),
    ],
)
def test_other_hyper_parameters_are_refused_by_name(
    change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    run(tmp_path)
    method = ToyMethod(change.get("method"))
    with pytest.raises(ResumeError, match=re.escape(field)):
        fit(
            method,
            ToySource(),
            change.get("settings", trainer()),
            tmp_path,
            seed=change.get("seed", 7),
        )


def test_longer_run_goes_on_only_with_a_constant_rate(tmp_path: Path) -> None:
    settings = trainer(max_steps=6, micro_batch=4)
    run(tmp_path / "constant", settings=settings)
    run(tmp_path / "constant", settings=replace(settings, max_steps=9, micro_batch=4))
    run(tmp_path / "whole", settings=trainer(micro_batch=4))
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("constant", "whole")]
    assert files[0] == files[1]

    cosine = Toy(critic=Optim(lr=1e-2, cosine=True))
    run(tmp_path / "cosine", ToyMethod(cosine), settings)
    with pytest.raises(ResumeError, match=r"trainer\.max_steps was 6 and is now 9"):
        run(tmp_path / "cosine", ToyMethod(cosine), replace(settings, max_steps=9))


def test_a_field_of_another_code_version_is_named_not_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cosmos_distill.train.fingerprint import require_same

    require_same({"seed": 1, "method.gone": 2}, {"seed": 1, "method.new": 3})
    assert "method.gone, method.new" in caplog.text


def test_nothing_is_written_onto_a_network(tmp_path: Path) -> None:
    method = ToyMethod()
    before = {role: set(vars(network)) for role, network in method.roles.items()}
    run(tmp_path, method, trainer(activation_checkpointing="full"))
    assert {role: set(vars(network)) for role, network in method.roles.items()} == before


def test_log_window_means_count_only_steps_of_the_phase(tmp_path: Path) -> None:
    run(tmp_path / "each", settings=trainer(log_every=1))
    run(tmp_path / "window", settings=trainer(log_every=6))
    each = read(tmp_path / "each" / "log.jsonl")
    first = read(tmp_path / "window" / "log.jsonl")[0]
    for key in ("loss/kd", "loss/fake_score", "grad_norm/critic"):
        values = [record[key] for record in each[:6] if key in record]
        assert len(values) == (2 if key == "loss/kd" else 4)
        assert first[key] == pytest.approx(sum(values) / len(values))


def test_log_window_goes_on_over_a_resume(tmp_path: Path) -> None:
    settings = trainer(log_every=9, max_steps=9)
    method = ToyMethod()
    method.bad = dict.fromkeys(range(7, 9), "nan")
    with pytest.raises(NonFiniteError):  # steps 0..5 are in the window of the checkpoint after step 6
        run(tmp_path / "halves", method, replace(settings, max_nonfinite=2))
    assert run(tmp_path / "halves", settings=settings).resumed_from == 6
    run(tmp_path / "whole", settings=settings)
    logs = [read(tmp_path / name / "log.jsonl") for name in ("halves", "whole")]
    assert [{k: v for k, v in log[-1].items() if k != "wall"} for log in logs] == [
        {k: v for k, v in logs[1][0].items() if k != "wall"}
    ] * 2


def test_gradients_are_on_for_the_role_in_turn_alone(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    class Looking(ToyMethod):
        def losses(self, batch: Any, step: int, noise: Noise) -> dict[str, Tensor]:
            on = {r for r, net in self.roles.items() if any(p.requires_grad for p in net.parameters())}
            seen.append(on)
            return super().losses(batch, step, noise)

    run(tmp_path, Looking(), trainer(max_steps=4, micro_batch=4))
    assert seen == [{"student"}, {"critic"}, {"critic"}, {"student"}]


def test_without_tensorboard_the_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    run(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 9


def test_half_precision_run_keeps_fp32_masters_and_resumes(tmp_path: Path) -> None:
    settings = trainer(precision="bf16")
    run(tmp_path / "whole", ToyMethod(dtype=torch.bfloat16), settings)
    run(tmp_path / "halves", ToyMethod(dtype=torch.bfloat16), replace(settings, max_steps=5))
    run(tmp_path / "halves", ToyMethod(dtype=torch.bfloat16), settings)
    checkpoints = [tmp_path / name / "checkpoints" / "step_000000009" for name in ("whole", "halves")]
    shard = "shard-00001.safetensors"
    masters = [load_file(c / "optimizer_student" / shard) for c in checkpoints]
    assert masters[0]["master/first.weight"].dtype == torch.float32
    assert same(*masters)
    network = load_file(checkpoints[0] / "network_student" / shard)
    assert network["first.weight"].dtype == torch.bfloat16
    assert torch.equal(network["first.weight"], masters[0]["master/first.weight"].bfloat16())
