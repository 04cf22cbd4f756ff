"""Two ranks that distil networks of diffusers, and one that does it alone: ``ranks_worker.py FOLDER``."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from cosmos_distill import (
    DMD2,
    Adapter,
    FewStep,
    Grid,
    Guidance,
    Optim,
    Parallel,
    ShiftedTime,
    Trainer,
    distill,
)
from tests.integrations.twins import TRANSFER, ours, samples, theirs, wan

OPTIM = Optim(lr=1e-3, eps=1e-4, clip_norm=1.0)
TRAINER = Trainer(max_steps=3, global_batch=4, micro_batch=1, log_every=1, ema_decay=0.5)


def made(network: str, seed: int) -> Any:
    return wan(seed) if network == "wan" else theirs(ours(TRANSFER, seed))


def one(network: str, parallel: Parallel, folder: Path, rank: int) -> None:
    """Distil and leave the student's file, and what save_pretrained wrote."""
    flow = network == "wan"
    method = DMD2(
        sampler=FewStep(2 if flow else 1), levels=ShiftedTime() if flow else Grid(), guidance=Guidance(2.0),
        condition_frames=(1.0,) if flow else (0.5, 0.5), gan_weight=0.1, head="conv2d", head_width=16,
        student_update_freq=2, student=OPTIM, fake_score=OPTIM, discriminator=OPTIM,
    )  # fmt: skip
    teacher: Adapter = made(network, 7 + rank)
    student = copy.deepcopy(teacher)
    name = f"{network}-{parallel.data if dist.get_world_size() > 1 else 'alone'}"
    result = distill(student, teacher, method, samples(24), folder / name, trainer=TRAINER, parallel=parallel)
    student.save_pretrained(folder / f"{name}-pretrained")
    assert result.training is not None
    if rank == 0:
        shutil.copy(result.training.student, folder / f"{name}.safetensors")
        pretrained = folder / f"{name}-pretrained" / "diffusion_pytorch_model.safetensors"
        shutil.copy(pretrained, folder / f"{name}-saved.safetensors")


def run(rank: int, ranks: int, data: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{ranks}-{data}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for network in ("wan", "cosmos"):
        one(network, Parallel(data=data), folder, rank)
    dist.barrier()
    os._exit(0)


def main(folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for ranks, data in ((1, "replicated"), (2, "replicated"), (2, "sharded_optimizer"), (2, "fsdp")):
        mp.start_processes(run, args=(ranks, data, folder), nprocs=ranks, start_method="fork")
    differed = not torch.equal(next(made("wan", 7).parameters()), next(made("wan", 8).parameters()))
    text = list(json.dumps({"differed": differed}).encode())
    save_file({"text": torch.tensor(text, dtype=torch.uint8)}, folder / "said.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
