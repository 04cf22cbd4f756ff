"""Forked ranks on gloo that do what a launch does between its ranks. Run as ``ranks_worker.py FOLDER``; every
rank leaves ``<part>-<rank>.json`` there, and ``leave-<rank>.status``."""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_distill.config import Parallel
from cosmos_distill.data.batch import Batch
from cosmos_distill.errors import Refusal
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import Shared, drawn, handed_out
from cosmos_distill.parallel import agreement, data, groups, megatron  # noqa: F401  # once, for all that are forked
from cosmos_distill.train.guard import Interrupted, StopFlag
from cosmos_distill.train.loop import fit
from tests.train.fakes import ToyMethod, ToySource, trainer

T = TypeVar("T")


class Counting(ToySource):
    """Remembers what was read."""

    skipped: dict[str, str]

    def __init__(self) -> None:
        self.read: list[int] = []
        self.skipped = {f"clip of rank {dist.get_rank()}": "broken"}

    def batch(self, first: int, count: int) -> Batch:
        self.read.append(first)
        names = tuple(f"sample {i}" for i in range(first, first + count))
        batch = super().batch(first, count)
        return Batch.of(first, batch.tensors() | {"hint": None}, names)

    def description(self) -> dict[str, Any]:
        return {"source": "counting", "skipped": ["before"]}


def waited() -> dict[str, bool]:
    """Whether this rank enters each collective only once the slow one has done its work: until then nothing
    that has a timeout waits."""
    rank, ended, entered = dist.get_rank(), Path(os.environ["RANKS_FOLDER"]) / "ended", []

    def slow(value: T) -> T:
        time.sleep(0.2)
        ended.touch()
        return value

    def recorded(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            entered.append(ended.exists())
            return collective(*args, **kwargs)

        return call

    names = (
        "broadcast_object_list",
        "all_gather_object",
        "gather_object",
        "scatter_object_list",
        "all_reduce",
    )
    before = {name: getattr(dist, name) for name in names}
    for name, collective in before.items():
        setattr(dist, name, recorded(collective))
    found = {}
    works: dict[str, Callable[[], object]] = {
        "on_rank_zero": lambda: agreement.on_rank_zero(lambda: slow(0)),
        "all_gather": lambda: agreement.all_gather(lambda: slow(0) if rank == 3 else 0),
        "gather": lambda: ranks.gather(slow(0) if rank == 2 else 0),
        "scatter": lambda: ranks.scatter([*slow("ab")] if rank == 0 else None),
        "any_rank": lambda: ranks.any_rank(slow(False) if rank == 1 else False),
    }
    for name, work in works.items():
        entered.clear()
        work()
        found[name] = all(entered)
        dist.barrier()
        ended.unlink(missing_ok=True)
        dist.barrier()
    for name, collective in before.items():
        setattr(dist, name, collective)
    return found


def between(folder: Path) -> dict[str, Any]:
    """Two tensor-parallel x two data-parallel ranks."""
    groups.initialize(Parallel(tensor=2))
    found: dict[str, Any] = {"data_rank": groups.data_rank()}
    source = Counting() if Shared.reads() else None
    shared: Any = Shared(source)  # type: ignore[arg-type]
    first = 10 * groups.data_rank()
    batch, expected = shared.batch(first, 3), ToySource().batch(first, 3)
    found["same"] = all(
        torch.equal(batch.tensors()[name], value)
        for name, value in expected.tensors().items()
        if name != "hint"
    )
    found |= {
        "first": batch.first,
        "names": batch.names,
        "hint": batch.conditioning.hint,
        "noise": batch.noise,
    }
    plain: Any = Shared(ToySource() if Shared.reads() else None)  # type: ignore[arg-type]
    found["without_names"] = plain.batch(first, 3).names
    found["read"] = None if source is None else source.read
    found["description"] = shared.description()

    drew: list[int] = []
    rounds: list[int] = []

    def draw(start: int, count: int) -> tuple[int, Tensor]:
        drew.append(start)
        return start, torch.full((count,), float(start))

    pieces = [(0, 4), (4, 4), (8, 4), (12, 4), (16, 2)]
    made = list(drawn(pieces, draw, lambda: rounds.append(1)))
    found |= {"drew": drew, "rounds": len(rounds), "made": [(n, t.tolist()) for n, t in made]}

    worked: list[str] = []

    def work(task: str, given: str) -> str:
        worked.append(task)
        return f"{given} of {task}"

    tasks = ["a", "b", "c"]
    found["handed out"] = list(handed_out(tasks, str.upper, work, lambda: rounds.append(1)))
    found["worked"] = worked

    found["waited"] = waited()

    found["shared"] = agreement.on_rank_zero(lambda: {"rank": dist.get_rank(), "path": Path("x")})["rank"]
    found["any"] = [ranks.any_rank(dist.get_rank() == 3), ranks.any_rank(False)]

    def refuse() -> None:
        raise Refusal("not here")

    class Local(Exception):
        """Nobody else knows it."""

    def fail() -> None:
        raise Local("only here")

    found["raised"] = []
    for work in (refuse, fail):
        try:
            agreement.on_rank_zero(work)
        except Exception as error:
            found["raised"].append([type(error).__name__, str(error), agreement.is_shared(error)])
    model = groups.model_group()
    found["of the group"] = agreement.on_rank_zero(dist.get_rank, model)
    found["gathered"] = agreement.all_gather(dist.get_rank, model)
    try:
        agreement.all_gather(lambda: 1 // (1 - model.rank()), model)
    except ZeroDivisionError as error:
        found["divided"] = agreement.is_shared(error)
    return found


class Faulty(ToyMethod):
    """NaN in step 3, of the second half of the samples only, and three of four samples left out in step 6; a
    stop asked for in step ``stop_at``."""

    global_batch = 4

    stop_at, stop = -1, StopFlag()

    def losses(self, batch: Batch, step: int, noise: Any) -> dict[str, Tensor]:
        if dist.get_rank() == 1 and step == self.stop_at:
            self.stop.request("rank 1's own")
        self.left_out = {6: 3}
        losses = super().losses(batch, step, noise)
        if step == 3 and batch.first % 4 >= 2:
            losses["loss/kd"] = losses["loss/kd"] * float("nan")
        return losses


def training(folder: Path) -> dict[str, Any]:
    """Two data-parallel ranks."""
    settings = trainer(micro_batch=1, log_every=1)
    result = fit(ToyMethod(), ToySource(), settings, folder / "two", seed=7)
    bad = fit(Faulty(), ToySource(), settings, folder / "bad", seed=7)
    method = Faulty()
    method.stop_at = 5
    text = ""
    try:
        fit(method, ToySource(), settings, folder / "stopped", seed=7, stop=method.stop)
    except Interrupted as error:
        text = str(error)
    return {"losses": result.losses, "skipped": [bad.skipped_by_role, bad.left_out], "stopped": text}


def leaving(folder: Path) -> dict[str, Any]:
    """Rank 1 fails; rank 0 meets only that it has gone, and rank 2 hangs. None comes back from here."""
    ranks._POLL, ranks._PATIENCE, ranks._GRACE = 0.2, 2.0, 0.5  # so that the test does not take long
    ranks.connect()

    def say(rank: str) -> None:
        (folder / f"said-{dist.get_rank()}").write_text(rank)

    if dist.get_rank() == 2:
        time.sleep(60)
    if dist.get_rank() == 0:
        time.sleep(0.5)
    ranks.abort(ArithmeticError(f"of rank {dist.get_rank()}"), 7, say, agreed=False)


def drawing(folder: Path) -> dict[str, Any]:
    """Two ranks that hold half of every network draw three batches, one of them shorter."""
    from cosmos_distill import diffusion, models
    from cosmos_distill.config import EDM, ONE_STEP
    from cosmos_distill.families import preset
    from cosmos_distill.launch.updates import clip
    from cosmos_distill.sampling.samplers import few_steps

    layout = groups.initialize(Parallel(data="fsdp"))
    config: Any = preset("transfer1-smoke")
    levels = diffusion.build_schedule(EDM())
    whole, sharded = (models.build(config, seed=0).eval() for _ in range(2))
    data.shard(sharded.requires_grad_(False), layout)
    calls: list[int] = []
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in sharded.parameters())

    def draw(network: Any, first: int, count: int) -> list[float]:
        generator = torch.Generator().manual_seed(first)
        one = clip(config, (16, 3, 8, 8)).map(lambda v: torch.randn(v.shape, generator=generator))
        batch = one.map(lambda v: v.expand(count, *v.shape[1:]).contiguous())
        calls.append(first)
        return few_steps(network, levels, batch, batch.latents, ONE_STEP).flatten(1).mean(1).tolist()

    pieces = [(0, 2), (2, 2), (4, 1)]
    made = list(drawn(pieces, lambda *piece: draw(sharded, *piece), lambda: None, collective=True))
    took = list(calls)
    alone = [draw(whole, *piece) for piece in pieces]
    total = sum(p.numel() for p in whole.parameters())
    return {"made": made, "alone": alone, "calls": took, "held": held / total}


PARTS: dict[str, tuple[int, Callable[[Path], dict[str, Any]]]] = {
    "between": (4, between),
    "training": (2, training),
    "drawing": (2, drawing),
    "leaving": (3, leaving),
}


def main(folder: Path) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANKS_FOLDER": str(folder)}
    torch.set_num_threads(1)
    for part, (size, function) in PARTS.items():
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
                store = dist.FileStore(str(folder / f"store-{part}"), size)
                dist.init_process_group(
                    "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=40)
                )
                found = function(folder)
                (folder / f"{part}-{rank}.json").write_text(json.dumps(found))
                dist.barrier()
                os._exit(0)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        (folder / f"{part}.statuses").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
