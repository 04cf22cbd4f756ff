"""Runs layouts on request: a line of JSON on standard input, the answer as a line on standard output.

A process of its own, because the parent of a fork must not have used OpenMP threads or a process group, and
the test runner has. The imports, which are the expensive part, are done once; every layout then forks its
ranks, which run all cases in turn.
"""

from __future__ import annotations

import datetime
import faulthandler
import importlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.parallel.layout_run import Entry, Record, Variation, record
from tests.parallel.layouts import LAYOUTS, ONE, Layout

TIMEOUT = 90.0
"""Seconds for all cases under one layout."""
TINY = 1e-12
Whole = dict[str, torch.Tensor]


class LayoutError(Exception):
    """A layout failed on some rank."""


def rank_main(rank: int, layout: Layout, cases: list[str], variation: Variation, folder: Path) -> None:
    """One rank. Leaves ``rank<n> <case>``, ``error<n>`` if something is raised, ``stack<n>`` if it hangs."""
    torch.set_num_threads(1)
    with (folder / f"stack{rank}").open("w") as stack:
        faulthandler.dump_traceback_later(TIMEOUT - 5, file=stack)
        try:
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(str(folder / "store"), layout.ranks),
                rank=rank,
                world_size=layout.ranks,
                timeout=datetime.timedelta(seconds=TIMEOUT / 2),
            )
            found = record(layout, cases, variation, folder)
            for case, of in found.items():
                of.save(folder / f"rank{rank} {case}")
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            (folder / f"error{rank}").write_text(traceback.format_exc())
            raise SystemExit(1) from None
        finally:
            faulthandler.cancel_dump_traceback_later()


def run_ranks(layout: Layout, cases: list[str], variation: Variation) -> list[dict[str, Record]]:
    """Fork the ranks; what each saw, by case.

    Raises:
        LayoutError: a rank raised or was not done in time; with every rank's traceback, the first first.
    """
    fork = mp.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            fork.Process(target=rank_main, args=(rank, layout, cases, variation, folder), daemon=True)
            for rank in range(layout.ranks)
        ]
        for process in ranks:
            process.start()
        waiting, end = {process.sentinel: process for process in ranks}, time.monotonic() + TIMEOUT
        while waiting and time.monotonic() < end:
            for sentinel in connection.wait(list(waiting), timeout=end - time.monotonic()):
                process = waiting.pop(sentinel)
                process.join()
                if process.exitcode:  # the others wait for this one
                    end = min(end, time.monotonic() + 1)
        late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
            process.join()
        failed = sorted(folder.glob("error*"), key=lambda path: path.stat().st_mtime_ns)
        if late or failed or any(process.exitcode for process in ranks):
            parts = [f"{path.name.replace('error', 'rank ')}:\n{path.read_text()}" for path in failed]
            parts += [f"rank {rank} not done:\n{(folder / f'stack{rank}').read_text()}" for rank in late]
            parts += [f"exit codes {[process.exitcode for process in ranks]}"]
            raise LayoutError("\n".join(parts))
        return [
            {case: Record.load(folder / f"rank{rank} {case}") for case in cases}
            for rank in range(layout.ranks)
        ]


def assemble(ranks: list[list[Entry]]) -> tuple[Whole, list[str]]:
    """Whole tensors, and the keys of those of which two ranks hold different values.

    Raises:
        LayoutError: nobody has some part of a tensor.
    """
    wholes: Whole = {}
    differ: set[str] = set()
    for entries in ranks:
        for key, shape, offsets, value in entries:
            filled = key in wholes
            if not filled:
                wholes[key] = torch.full(shape, torch.nan, dtype=torch.float64)
            box = tuple(slice(o, o + n) for o, n in zip(offsets, value.shape, strict=True))
            there = wholes[key][box]
            if filled and not torch.where(there.isnan(), True, there == value).all():
                differ.add(key)
            there.copy_(value)
    if missing := [key for key, value in wholes.items() if value.isnan().any()]:
        raise LayoutError(f"no rank has the whole of {len(missing)} tensors, such as {missing[:5]}")
    return wholes, sorted(differ)


def compare(found: Whole, expected: Whole) -> dict[str, tuple[float, str]]:
    """Largest relative difference, and of what, for every phase and kind.

    Of a tensor that is the largest absolute difference over the largest absolute value.

    Raises:
        LayoutError: there is something else in the one than in the other.
    """
    if odd := found.keys() ^ expected.keys():
        raise LayoutError(f"{len(odd)} tensors are not in both, such as {sorted(odd)[:5]}")
    worst: dict[str, tuple[float, str]] = {}
    for key, value in expected.items():
        if value.shape != found[key].shape:
            raise LayoutError(f"{key} has shape {tuple(found[key].shape)}, not {tuple(value.shape)}")
        difference = relative(found[key], value)
        group = "/".join(key.split("/")[:2])
        worst[group] = max(worst.get(group, (-1.0, "")), (difference, key))
    return worst


def moved(found: Whole) -> dict[str, float]:
    """Relative difference of every weight between the start and the end."""
    weights = {key.removeprefix("start/weight/"): v for key, v in found.items() if key.startswith("start/")}
    return {name: relative(found[f"end/weight/{name}"], value) for name, value in weights.items()}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest number expected; infinite for NaN, which max() passes over."""
    largest = float((found - expected).abs().max() / (expected.abs().max() + TINY))
    return math.inf if math.isnan(largest) else largest


class Server:
    """Answers requests and keeps the results of one rank."""

    def __init__(self) -> None:
        self.one: dict[str, Whole] = {}

    def reference(self, case: str) -> Whole:
        if case not in self.one:
            (found,) = run_ranks(ONE, [case], Variation())
            self.one[case], _ = assemble([found[case].entries])
        return self.one[case]

    def answer(self, layout: str | None, cases: list[str], **variation: Any) -> dict[str, Any]:
        """Of every case: ``worst`` {<phase>/<kind>: [difference, of what]}, ``copies`` that are not equal on
        all ranks, how far weights ``moved`` and the ``seconds`` it took; if only ``memory`` is looked at,
        what each rank ``held``."""
        if variation.get("memory"):
            assert layout is not None
            ranks = run_ranks(LAYOUTS[layout], cases, Variation(**variation))
            return {case: {"held": [rank[case].held for rank in ranks]} for case in cases}
        for case in cases:
            self.reference(case)
        ranks = run_ranks(ONE if layout is None else LAYOUTS[layout], cases, Variation(**variation))
        report = {}
        for case in cases:
            found, differ = assemble([rank[case].entries for rank in ranks])
            report[case] = {
                "worst": compare(found, self.reference(case)),
                "copies": differ,
                "moved": moved(found),
                "seconds": max(rank[case].seconds for rank in ranks),
            }
        return report


USED = (
    "diffusion.edm", "diffusion.trigflow", "models.common.heads", "models.common.init",
    "ops.adaln.cpu", "ops.attn.sdpa", "ops.dm_loss.cpu", "ops.gan_loss", "ops.qknorm.cpu",
)  # fmt: skip
"""What ranks would import one by one."""


def main() -> None:
    torch.set_num_threads(1)
    for module in USED:
        importlib.import_module(f"cosmos_distill.{module}")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the ranks print, such as the loop's progress, goes there
    server = Server()
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"report": server.answer(**json.loads(line))}
        except LayoutError as error:
            answer = {"error": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
