"""The report's training step really runs the backends that it names."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cosmos_distill import cli
from cosmos_distill.config import Parallel
from cosmos_distill.eval import latency
from cosmos_distill.ops import registry
from cosmos_distill.run.checks import teacher_files
from cosmos_distill.run.networks import open_clips
from cosmos_distill.stages import step_time

ROOT = Path(__file__).parents[2]


def measured(**changes: Any) -> dict[str, Any] | None:
    recipe = cli.load(ROOT / "recipes" / "transfer1_kd_dmd2.py").recipe(scale="smoke")
    run: Any = SimpleNamespace(recipe=replace(recipe, **changes))
    return step_time.measure(run, teacher_files(recipe), open_clips(recipe, "eval"))


@pytest.mark.compiled
def test_every_row_runs_the_backends_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: dict[str, dict[str, str]] = {}

    def once(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, latency.Latency]:
        for who, call in calls.items():
            monkeypatch.setattr(registry, "_picked", {})
            call()
            ran[who] = {key[0]: backend for key, backend in registry._picked.items()}
        return {who: latency.Latency(1.0, 1.0, 1.0, rounds) for who in calls}

    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setattr(latency, "interleaved", once)
    found = measured()
    assert found is not None and found["picked"] == ["cpu", "sdpa"]
    own = ("adaln_modulate", "gated_residual_adaln", "qk_norm_rope")
    for who, ours, attention in (
        ("picked", "cpu", "sdpa"),
        ("reference", "reference", "reference"),
        ("reference_sdpa", "reference", "sdpa"),
    ):
        assert ran[who] == {**dict.fromkeys(own, ours), "attention": attention}


def test_a_step_that_no_single_device_trains_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(parallel=Parallel(tensor=2)) is None

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step_time, "_measure", too_large)
    assert measured() is None
