"""A teacher whose unconditional branch overflows: the critics learn on, the student never takes a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_distill.config import Recipe
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.methods.dmd2 import DMD2Method
from cosmos_distill.randomness import Noise
from cosmos_distill.train.guard import NonFiniteError
from cosmos_distill.train.log import read
from tests.fields.specimens import PREDICT25, TRANSFER1, Stages, changed


def overflowing(monkeypatch: pytest.MonkeyPatch, which: Callable[[int], bool]) -> None:
    """Make the guided prediction infinite in the samples that ``which`` names, by number in a step."""
    guide, losses, first = DMD2Method.guide, DMD2Method.losses, [0]

    def noted(self: DMD2Method, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        first[0] = batch.first
        return losses(self, batch, step, noise)

    def broken(self: DMD2Method, cond: Tensor, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        whole = guide(self, cond, x_t, t, conditioning)
        bad = torch.tensor([which((first[0] + i) % 2) for i in range(len(whole))])
        return torch.where(bad.view(-1, 1, 1, 1, 1), torch.inf, whole)

    monkeypatch.setattr(DMD2Method, "losses", noted)
    monkeypatch.setattr(DMD2Method, "guide", broken)


def longer(recipe: Recipe, steps: int) -> Recipe:
    alone = changed(recipe, "stages", {"dmd2": dataclasses.replace(recipe.stages["dmd2"], start_from=None)})
    return changed(
        changed(alone, "stages.dmd2.trainer.max_steps", steps), "stages.dmd2.trainer.max_nonfinite", 3
    )


@pytest.mark.parametrize("recipe", [TRANSFER1, PREDICT25], ids=["transfer1", "predict25"])
@pytest.mark.parametrize("steps, said", [
    (12, r"loss/vsd was not finite in 3 steps in a row of student \(the last is step 4\)"),
    (4, r"student took not one step in all 4 steps.*loss/vsd was never finite in its 2 steps"),
])  # fmt: skip
def test_stage_without_a_step_of_the_student_is_not_complete(
    recipe: Recipe, steps: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(monkeypatch, lambda position: True)
    with pytest.raises(NonFiniteError, match=said):
        Stages(longer(recipe, steps), tmp_path / "run")
    lines = read(tmp_path / "run" / "dmd2" / "log.jsonl")
    assert any("loss/fake_score" in line for line in lines)  # whose steps are good
    assert [line["nonfinite"] for line in lines if "nonfinite" in line] == ["loss/vsd"] * (
        3 if steps > 4 else 2
    )
    assert not (tmp_path / "run" / "dmd2" / "student.safetensors").exists()


def test_samples_left_out_one_by_one_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, lambda position: position == 1)
    Stages(longer(PREDICT25, 4), tmp_path / "run")
    last = read(tmp_path / "run" / "dmd2" / "log.jsonl")[-1]
    assert last["skipped"] == 0 and last["left_out/student"] == 2  # one of two samples in each of two steps
