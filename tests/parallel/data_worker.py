"""Trains small networks under every kind of data parallelism: ``python data_worker.py FOLDER``.

Writes FOLDER/<world>-<rank>.pt: results by name. A process of its own, for the reasons given in
tensor_worker; every world of ranks is forked after the imports.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cosmos_distill.config import Parallel
from cosmos_distill.models import build
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.parallel import buffers, data, groups
from cosmos_distill.train.ema import EMA, constant
from cosmos_distill.train.optim import RoleOptimizer, network_pieces
from tests.parallel.data_networks import (
    KINDS,
    OPTIM,
    Network,
    Results,
    StageNetwork,
    TensorNetwork,
    fill,
    gather,
    initialise,
    sample,
)
from tests.parallel.data_precision import micro_batches, refused, sums
from tests.parallel.layout_plants import last_rank_drifts

BATCH, MICRO = 8, 1


class Run:
    """One network with optimiser and average."""

    def __init__(self, network: nn.Module, kind: Parallel, saved: Results | None = None) -> None:
        self.network = network
        data.shard(network, kind)
        self.optimizer = RoleOptimizer(network, OPTIM, 10, kind)
        self.ema = EMA(self.optimizer.masters, constant(0.5))
        if saved is not None:
            fill(network_pieces(network), saved["network"])
            fill(self.optimizer.pieces(allocate=True), saved["optimizer"])
            fill(self.optimizer.pieces_of(self.ema.average), saved["average"])
            self.optimizer.after_load(saved["optimizer"].keys())

    def step(self, step: int, loss: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (5,)) -> Tensor:
        """Returns the norm of the gradient, before it is cut."""
        optimizer = self.optimizer
        optimizer.requires_grad_(True)
        optimizer.zero_grad()
        mine = range(step * BATCH + groups.data_rank(), (step + 1) * BATCH, groups.data_size() * MICRO)
        for index in mine:
            self.network.early = index < mine.start + len(mine) // 2 * mine.step
            with optimizer.backward_of(index == mine[-1]):
                (loss(sample(index, shape)).sum() / BATCH).backward()
        optimizer.reduce()
        norm = optimizer.gradient_norm()
        optimizer.clip(float(norm))
        optimizer.step(step)
        optimizer.zero_grad()
        self.ema.update()
        return norm

    def state(self) -> Results:
        return {
            "network": gather(network_pieces(self.network)),
            "optimizer": gather(self.optimizer.pieces()),
            "average": gather(self.optimizer.pieces_of(self.ema.average)),
        }


def square(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: (network(x.to(next(network.parameters()).dtype)).float() - x.flip(-1)).square()


def plain(kind: Parallel, make: Callable[[], nn.Module] = lambda: Network(0), steps: int = 3) -> Results:
    network = make()
    run = Run(network, kind)
    norms = torch.stack([run.step(step, square(network)) for step in range(steps)])
    result = {"norms": norms, **run.state(), "updates": run.optimizer.updates}
    run.optimizer.close()
    network.early = True
    square(network)(sample(0, (5,))).sum().backward()
    ours = [n for n, p in network.named_parameters() if p.grad is None]
    assert set(ours) <= {"unused", "entry"}, ours  # what is given back works like any network
    return result


def chain(kinds: list[str], dtype: torch.dtype) -> Results:
    """Every step under the next kind, which begins with what the one before has saved."""
    saved: Results | None = None
    norms = []
    for step, kind in enumerate(kinds):
        network = Network(step).to(dtype) if saved else Network(0).to(dtype)
        run = Run(network, KINDS[kind], saved)
        norms.append(run.step(step, square(network)))
        saved = run.state()
    assert saved is not None
    return {"norms": torch.stack(norms), **saved}


def uninterrupted(steps: int, dtype: torch.dtype) -> Results:
    network = Network(0).to(dtype)
    run = Run(network, Parallel())
    norms = torch.stack([run.step(step, square(network)) for step in range(steps)])
    return {"norms": norms, **run.state()}


def drifting(work: Callable[..., Results], *args: Any) -> Results:
    with last_rank_drifts():
        return work(*args)


def phases(kind: Parallel) -> Results:
    """Two roles in turn, a judge without blocks, and a frozen teacher with a gradient through it."""
    student, critic, judge, teacher = Network(0), Network(1), Network(2, blocks=0), Network(3)
    data.shard(teacher, kind)
    teacher.requires_grad_(False)
    runs = {"student": Run(student, kind), "critic": Run(critic, kind), "judge": Run(judge, kind)}

    def student_loss(x: Tensor) -> Tensor:
        made = student(x)
        with torch.no_grad():
            target = critic(made)
        return (teacher(made) - target).square() + 0.1 * judge(made)

    def critic_loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            made = student(x)
        return (critic(made) - critic(x.flip(-1))).square() + made.square()

    def judge_loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            made = teacher(student(x))
        return (judge(made) - x).square()

    norms = []
    losses = {"student": student_loss, "critic": critic_loss, "judge": judge_loss}
    for step, turn in enumerate(["student", "critic", "judge", "student", "critic", "student"]):
        for role, run in runs.items():
            run.optimizer.requires_grad_(role == turn)
            run.optimizer.zero_grad()
            if isinstance(run.optimizer.share, buffers.BufferedShare):
                memory = [b.grad_data.untyped_storage().size() for b in run.optimizer.share.buffers()]
                assert (0 not in memory) == (role == turn)
        norms.append(runs[turn].step(step, losses[turn]))
        with runs["student"].ema.applied_to(runs["student"].optimizer), torch.no_grad():
            norms.append(student(torch.ones(1, 5)).norm())
    assert all(p.grad is None for p in teacher.parameters())
    return {"norms": torch.stack(norms), **{role: run.state() for role, run in runs.items()}}


def diffusion(kind: Parallel) -> Results:
    network = build(PRESETS["transfer1-smoke"], seed=None)
    network.activation_checkpointing = "full"
    text = sample(0, (8, 64))

    def loss(x: Tensor) -> Tensor:
        return (network(x, torch.tensor([0.3]), text, hint=x.flip(-1)) - x).square().mean()

    initialise(network, 1)  # a new control branch adds nothing and gets no gradient
    run = Run(network, kind)
    norms = torch.stack([run.step(step, loss, (16, 2, 4, 6)) for step in range(2)])
    return {"norms": norms, **run.state()}


def overlapped(kind: Parallel) -> Results:
    """With several buckets, too."""
    settings = buffers.distributed.DistributedDataParallelConfig
    buffers.overlaps = lambda: True
    buffers.distributed.DistributedDataParallelConfig = partial(settings, bucket_size=120)
    try:
        return plain(kind)
    finally:
        buffers.overlaps = lambda: False
        buffers.distributed.DistributedDataParallelConfig = settings


def one() -> Results:
    return {
        "plain": plain(Parallel()),
        "chain": uninterrupted(4, torch.float32),
        "half": uninterrupted(4, torch.bfloat16),
        "phases": phases(Parallel()),
        "diffusion": diffusion(Parallel()),
        "tensor": plain(Parallel(), lambda: TensorNetwork(0)),
        "stages": plain(Parallel(), lambda: StageNetwork([0, 1])),
    }


def two() -> Results:
    order = ["fsdp", "sharded_optimizer", "replicated", "fsdp"]
    return {
        "chain": chain(order, torch.float32),
        "half": chain(order, torch.bfloat16),
        **{f"plain/{name}": plain(kind) for name, kind in KINDS.items()},
        **{f"phases/{name}": phases(kind) for name, kind in KINDS.items()},
        **{f"diffusion/{name}": diffusion(kind) for name, kind in KINDS.items()},
        **{f"plain/{name} overlapped": overlapped(kind) for name, kind in list(KINDS.items())[:2]},
    }


def four() -> Results:
    return {
        "plain/hybrid": plain(Parallel(data="fsdp", fsdp_shards=2)),
        "plain/four": plain(KINDS["fsdp"]),
        "phases/hybrid": phases(Parallel(data="fsdp", fsdp_shards=2)),
        "refused": [refused(Network(0), 3), refused(nn.ModuleDict({"a": Network(0), "b": nn.Linear(2, 2)}))],
        "sums": {name: sums(kind) for name, kind in KINDS.items()},
    }


def tensor() -> Results:
    return {
        **{f"tensor/{name}": plain(kind, lambda: TensorNetwork(0)) for name, kind in KINDS.items()},
        **{
            f"tensor/{name} drifting": drifting(plain, kind, lambda: TensorNetwork(0))
            for name, kind in KINDS.items()
        },
        **{f"phases/{name} drifting": drifting(phases, kind) for name, kind in KINDS.items()},
        "diffusion/sharded_optimizer": diffusion(KINDS["sharded_optimizer"]),
        "diffusion/fsdp": diffusion(KINDS["fsdp"]),
    }


def pipeline() -> Results:
    stage = groups.pipeline_group().rank()
    return {
        **{f"stages/{name}": plain(kind, lambda: StageNetwork([stage])) for name, kind in KINDS.items()},
        **{
            f"stages/{name} drifting": drifting(plain, kind, lambda: StageNetwork([stage]))
            for name, kind in KINDS.items()
        },
        "together": micro_batches(together=True),
        "one by one": micro_batches(together=False),
    }


WORLDS: dict[str, tuple[int, Parallel, Callable[[], Results]]] = {
    "one": (1, Parallel(), one),
    "two": (2, Parallel(), two),
    "four": (4, Parallel(), four),
    "tensor": (4, Parallel(tensor=2), tensor),
    "pipeline": (4, Parallel(pipeline=2), pipeline),
}


def main(rank: int, world: str, folder: Path) -> None:
    torch.set_num_threads(1)
    ranks, layout, work = WORLDS[world]
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / f"store-{world}"), ranks),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=30),
    )
    groups.initialize(layout)
    torch.save(work(), folder / f"{world}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for world, (ranks, *_) in WORLDS.items():
        if world in sys.argv[2:] or not sys.argv[2:]:
            mp.start_processes(main, args=(world, Path(sys.argv[1])), nprocs=ranks, start_method="fork")
