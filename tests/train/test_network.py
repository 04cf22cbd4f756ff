"""The loop with a real network and a real method: the smoke preset under EDM denoising."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cosmos_distill import methods, models
from cosmos_distill.config import EDM, Optim
from cosmos_distill.diffusion import EDMSchedule
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.models.common.network import ControlledDiT
from cosmos_distill.train.guard import Interrupted, StopFlag
from cosmos_distill.train.log import read
from cosmos_distill.train.loop import fit
from tests.train.clips import CONFIG, Clips
from tests.train.fakes import trainer


def run(folder: Path, dtype: torch.dtype = torch.float32, clips: Clips | None = None, **changes: Any) -> Any:
    config = Denoising(student=Optim(lr=3e-3, warmup_steps=3, clip_norm=10.0))
    settings = trainer(**({"max_steps": 6, "log_every": 1, "micro_batch": 4} | changes))

    def networks(role: str) -> ControlledDiT:
        network = models.build(CONFIG, dtype=dtype, seed=0)
        network.activation_checkpointing = settings.activation_checkpointing
        return network

    method = methods.build(config, networks, EDMSchedule(EDM()), seed=0)
    clips = clips or Clips()
    return fit(method, clips, settings, folder, seed=3, stop=clips.stop)


def test_interrupted_run_ends_bit_equal(tmp_path: Path) -> None:
    run(tmp_path / "whole", micro_batch=2)
    with pytest.raises(Interrupted):
        run(tmp_path / "halves", clips=Clips(StopFlag(), last=4 * 4), micro_batch=2)
    assert run(tmp_path / "halves", micro_batch=2).resumed_from == 4
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "halves")]
    assert files[0] == files[1]
    logs = [read(tmp_path / name / "log.jsonl") for name in ("whole", "halves")]
    losses = [[record["loss/denoising"] for record in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"activation_checkpointing": "full"}])
def test_memory_settings_do_not_change_the_run(changes: dict[str, Any], tmp_path: Path) -> None:
    students = [
        load_file(run(tmp_path / name, **more).student) for name, more in (("plain", {}), ("other", changes))
    ]
    for name in students[0]:
        torch.testing.assert_close(students[0][name], students[1][name], rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss_in_both_precisions(tmp_path: Path) -> None:
    last = {}
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        run(tmp_path / precision, dtype, max_steps=40, global_batch=8, micro_batch=8, precision=precision)
        losses = [record["loss/denoising"] for record in read(tmp_path / precision / "log.jsonl")]
        last[precision] = sum(losses[-10:]) / 10
        assert last[precision] < 0.7 * sum(losses[:5]) / 5
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.1)
