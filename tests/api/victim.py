"""A program that distils and is killed: ``python -m tests.api.victim FOLDER [STEP]``.

With STEP it sends itself SIGKILL when it reads that step's samples, once the checkpoint before is there.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cosmos_distill import DMD2, Distilled, Optim, Trainer, distill
from tests.api.foreign import adapter, samples

STEPS, BATCH = 9, 4


class Deadly(list[Any]):
    """A list of samples whose reader dies at the given one."""

    def __init__(self, folder: Path, reads: int) -> None:
        super().__init__(samples())
        self.folder, self.left = folder, reads

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if not self.left:
            deadline = time.monotonic() + 30
            while (
                not (self.folder / "checkpoints" / "step_000000003").exists() and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def run(folder: Path, data: Any) -> Distilled:
    """Three roles and an average, in the seven lines that a user writes."""
    torch.set_num_threads(1)
    teacher = adapter()
    student = copy.deepcopy(teacher)
    optim = Optim(lr=1e-2)
    method = DMD2(
        student_update_freq=2, head="conv2d", head_width=8, condition_frames=(1.0,), gan_weight=0.1,
        student=optim, fake_score=optim, discriminator=optim,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=STEPS, global_batch=BATCH, micro_batch=2, ema_decay=0.5, log_every=1, save_every=3
    )
    return distill(student, teacher, method, data, folder, trainer=trainer, seed=5)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    # One sample is looked at before the first step.
    found = run(out, Deadly(out, int(sys.argv[2]) * BATCH + 2) if len(sys.argv) > 2 else samples())
    print(found.training.resumed_from if found.training else "")
