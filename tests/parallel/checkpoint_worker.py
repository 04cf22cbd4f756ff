"""Ranks on gloo that save and load checkpoints. Run as ``checkpoint_worker.py FOLDER``; see test_checkpoint.

A process of its own, which imports once and forks the ranks of every case: the parent of a fork must not
have used OpenMP threads or a process group, and the test runner has.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cosmos_distill import methods, models
from cosmos_distill.config import EDM, Optim, Parallel
from cosmos_distill.diffusion import EDMSchedule
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.parallel import data, groups, megatron  # noqa: F401  # once, for all that are forked
from cosmos_distill.storage import DiskError
from cosmos_distill.train.checkpoint import CheckpointError, Store, index, shards, whole
from cosmos_distill.train.loop import fit
from cosmos_distill.train.state import TrainState
from tests.parallel.checkpoint_pieces import averages, equal, pieces, tensors
from tests.train.clips import Clips
from tests.train.fakes import trainer


def save(rank: int, ranks: int, folder: Path) -> Any:
    """Steps 1 and 2, each with weights that change before anything is written."""
    go, write, published = threading.Event(), shards.write_tensors, []

    def patient(*args: Any) -> None:
        assert go.wait(30)
        write(*args)

    shards.write_tensors = patient
    store = Store(folder / "checkpoints", keep=2)
    random = {"cpu": whole(torch.arange(9, dtype=torch.uint8))} if rank == 0 else {}
    for step in (1, 2):
        mine = pieces(rank, ranks, tensors(), turned=False)
        go.clear()
        store.save(step, {"network": mine, "random": random}, {"step": step, "rank": rank})
        for block in (block for part in mine.values() for block in part.blocks):
            block.value.zero_()
        dist.barrier()
        published.append(store.path(step).exists())
        go.set()
        store.wait()
        published.append(store.path(step).exists())
    return {"published": published}


def load(rank: int, ranks: int, folder: Path) -> Any:
    """The newest under another layout, in place."""
    expected = pieces(rank, ranks, tensors(), turned=True)
    empty = {name: torch.zeros_like(value) for name, value in tensors().items()}
    mine = pieces(rank, ranks, empty, turned=True)
    memory = {name: [block.value.data_ptr() for block in part.blocks] for name, part in mine.items()}
    checkpoint = Store(folder / "checkpoints", keep=2).newest()
    assert checkpoint is not None and checkpoint.names("network") == tensors().keys()
    checkpoint.load("network", mine)
    random = torch.zeros(9, dtype=torch.uint8)
    checkpoint.load("random", {"cpu": whole(random)})
    return {
        "step": checkpoint.step,
        "state": checkpoint.state,
        "equal": equal(mine, expected) and random.tolist() == list(range(9)),
        "in place": memory
        == {name: [block.value.data_ptr() for block in part.blocks] for name, part in mine.items()},
    }


def fail(rank: int, ranks: int, folder: Path) -> Any:
    """Rank 1's disk is full at step 2, and has room again at step 3; at step 4 the ranks disagree."""
    store, write = Store(folder / "checkpoints", keep=2), shards.write_tensors
    messages = []

    def full(tensors: Any, path: Path, *args: Any) -> None:
        if "000000002" in str(path) and rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(tensors, path, *args)

    shards.write_tensors = full
    for step in (1, 2, 3):
        store.save(step, {"network": pieces(rank, ranks, tensors(), turned=False)}, {"step": step})
        try:
            store.wait()
        except DiskError as error:
            messages.append(str(error))
    try:
        store.save(4, {"network": {"w": whole(torch.zeros(2 + rank))}}, {})
    except CheckpointError as error:
        messages.append(str(error))
    return {"messages": messages}


def student(rank: int, ranks: int, folder: Path) -> Any:
    """A network and its average, cut differently."""
    own = pieces(rank, ranks, tensors(), turned=False)
    average = pieces(rank, ranks, {**tensors(), **averages()}, turned=True)
    average = {name: part for name, part in average.items() if name in averages()}
    with Store(folder / "checkpoints", keep=1) as store:
        numbers = {"fingerprint": {"method.name": "KD"}}
        store.save(4, {"network_student": own, "ema_student": average}, numbers)
    return {}


def trained(rank: int, ranks: int, folder: Path) -> Any:
    """Two steps of a real network in half precision, with everything that has state."""
    method = half_precision_method()
    fit(method, Clips(), settings(), folder / "trained", seed=3)
    return {}


def again(rank: int, ranks: int, folder: Path, before: str, name: str) -> Any:
    """Restore what was saved as ``before`` and save it again under this layout."""
    method = half_precision_method()
    state = TrainState(method, settings(), 3)
    checkpoint = Store(folder / before / "checkpoints", keep=1).newest()
    assert checkpoint is not None
    state.restore(checkpoint)
    with Store(folder / name / "checkpoints", keep=1) as store:
        store.save(state.step, state.groups(), state.numbers())
    state.close()
    return {"updates": {role: optimizer.updates for role, optimizer in state.optimizers.items()}}


def settings() -> Any:
    return trainer(max_steps=2, micro_batch=1, save_every=2, precision="bf16")


def half_precision_method() -> Any:
    """Networks of other weights than those that were trained, so that what is not restored shows."""
    config = Denoising(student=Optim(lr=3e-3))

    def network(role: str) -> Any:
        made = models.build(PRESETS["transfer1-smoke"], dtype=torch.bfloat16, seed=dist.get_world_size())
        data.shard(made, groups.layout())
        return made

    return methods.build(config, network, EDMSchedule(EDM()), seed=0)


def missing(rank: int, ranks: int, folder: Path) -> Any:
    """Rank 1 alone asks for a tensor that is not there."""
    checkpoint = Store(folder / "checkpoints", keep=2).newest()
    assert checkpoint is not None
    try:
        checkpoint.load("network", {"gone" if rank else "same": whole(torch.zeros(100))}, partial=True)
    except CheckpointError as error:
        return {"message": str(error)}
    return {"message": "none"}


def verify(rank: int, ranks: int, folder: Path) -> Any:
    """Which files each rank reads to check them, and what all of them take."""
    read, sha256 = [], index.sha256

    def counted(path: Path) -> str:
        read.append(path.relative_to(folder / "checkpoints").as_posix())
        return sha256(path)

    index.sha256 = counted
    checkpoint = Store(folder / "checkpoints", keep=2).newest()
    assert checkpoint is not None
    return {"step": checkpoint.step, "read": read}


def die(rank: int, ranks: int, folder: Path) -> Any:
    """Rank 1 is killed while it writes step 2; rank 0 is told."""
    store, write = Store(folder / "checkpoints", keep=2), shards.write_tensors

    def killed(tensors: Any, path: Path, *args: Any) -> None:
        write(tensors, path, *args)
        if "000000002" in str(path) and rank == 1:
            os.truncate(path, 20)
            os.kill(os.getpid(), signal.SIGKILL)

    shards.write_tensors = killed
    random = {"cpu": whole(torch.arange(9, dtype=torch.uint8))} if rank == 0 else {}
    mine = pieces(rank, ranks, tensors(), turned=False)
    for step in (1, 2):
        store.save(step, {"network": mine, "random": random}, {"step": step})
        try:
            store.wait()
        except DiskError as error:
            (folder.parent / f"die-{rank}.json").write_text(json.dumps({"message": str(error)}))
            os._exit(0)  # the group is broken: nothing to say goodbye to
    raise AssertionError("not killed")


Case = tuple[str, Callable[[int, int, Path], Any], int, Parallel]
CASES: list[Case] = [
    ("save", save, 2, Parallel(tensor=2)),
    ("load", load, 2, Parallel(tensor=2)),
    ("load4", load, 4, Parallel(tensor=2)),
    ("student", student, 4, Parallel(tensor=2)),
    ("trained", trained, 4, Parallel(tensor=2, sequence=True, data="sharded_optimizer")),
    ("fsdp", partial(again, before="trained", name="fsdp"), 2, Parallel(data="fsdp")),
    ("pipeline", partial(again, before="fsdp", name="pipeline"), 2, Parallel(pipeline=2)),
    ("stages", partial(again, before="pipeline", name="stages"), 4, Parallel(pipeline=2, data="fsdp")),
    ("zero", partial(again, before="stages", name="zero"), 2, Parallel(data="sharded_optimizer")),
    ("missing", missing, 2, Parallel()),
    ("fail", fail, 2, Parallel()),
    ("verify", verify, 2, Parallel()),
    ("die", die, 2, Parallel()),
    ("after", load, 2, Parallel()),
]
PREPARED = dict.fromkeys(("trained", "fsdp", "pipeline", "stages", "zero"), "layouts") | {
    "after": "die",
    "load": "save",
    "load4": "save",
    "missing": "save",
}
"""Cases that go on with the folder of another."""


def main(rank: int, case: Case, folder: Path) -> None:
    name, work, ranks, layout = case
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{name}"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=30)
    )
    groups.initialize(layout)
    found = work(rank, ranks, folder / PREPARED.get(name, name))
    (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    wanted = set(sys.argv[2:])
    for case in CASES:
        if case[0] in wanted:
            alone = case[0] == "die"  # the others are to notice it themselves, and are not ended for it
            ranks = mp.start_processes(
                main, args=(case, Path(sys.argv[1])), nprocs=case[2], start_method="fork", join=not alone
            )
            if alone:
                for process in ranks.processes:
                    process.join()
                assert [process.exitcode for process in ranks.processes] == [0, -signal.SIGKILL]
