"""Processes that are killed: runs of the toy method with a SIGKILL at a chosen place."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from cosmos_distill.data.batch import Batch
from cosmos_distill.storage import DiskError
from cosmos_distill.train import guard, loop
from cosmos_distill.train.checkpoint import consolidation, shards, store
from tests import rounding
from tests.train.fakes import ToyMethod, ToySource, trainer

POINTS = ("mid step 4", "before any save", "mid save 6", "before rename 6", "mid removal 9", "before publish")


def method() -> ToyMethod:
    """With everything that has state: batch norm's buffers, and dropout from torch's own generator."""
    return ToyMethod(norm=True, dropout=0.1)


def run(folder: Path, source: Any = None, stop: guard.StopFlag | None = None) -> loop.FitResult:
    """The run under test: 9 steps, a checkpoint every 3, a log line per step."""
    settings = trainer(log_every=1, keep_checkpoints=1)
    return loop.fit(method(), source or ToySource(), settings, folder, seed=7, stop=stop)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived a SIGKILL")


def published(checkpoint: Path) -> None:
    """Wait for it: a thread writes it while the next steps are computed."""
    deadline = time.monotonic() + 30
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@rounding.by_shapes()
def killed_at(point: str, folder: Path) -> None:
    """Run until ``point``; does not return."""
    torch.set_num_threads(1)
    if point == "mid step 4":

        def late(first: int) -> None:
            if first == 4 * 4 + 2:
                published(folder / "checkpoints" / "step_000000003")
                die()

        run(folder, _HookedSource(late))
    elif point == "before any save":
        run(folder, _HookedSource(lambda first: first == 2 * 4 and die()))
    elif point == "mid save 6":
        write = shards.write_tensors

        def half(tensors: Any, path: Path, *more: Any) -> None:
            write(tensors, path, *more)
            if "000000006" in str(path) and path.parent.name == "network_critic":
                os.truncate(path, path.stat().st_size // 2)
                die()

        shards.write_tensors = half
        run(folder)
    elif point == "before rename 6":
        rename = Path.rename

        def stop(self: Path, target: Path) -> Path:
            return die() if target.name == "step_000000006" else rename(self, target)

        Path.rename = stop  # type: ignore[method-assign,assignment]
        run(folder)
    elif point == "mid removal 9":  # of step 6, when step 9 has been published

        def remove(path: Path, ignore_errors: bool = False) -> None:
            if "removed-step_000000006" in path.name:
                (path / "index.json").unlink()
                die()

        store.shutil.rmtree = remove  # type: ignore[assignment]
        run(folder)
    elif point == "before publish":
        consolidation.publish_tensors = lambda *_: die()
        run(folder)
    sys.exit(f"nothing was killed at {point}")


@rounding.by_shapes()
def terminated(folder: Path) -> None:
    """A run slow enough to be met by a SIGTERM; leaves with 3 after a clean interruption."""
    torch.set_num_threads(1)
    try:
        with guard.StopFlag() as stop:
            run(folder, _HookedSource(lambda _: time.sleep(0.1)), stop)
    except guard.Interrupted:
        sys.exit(3)


@rounding.by_shapes()
def full_disk(folder: Path) -> None:
    """A run that may write no file beyond 2 KiB; leaves with 4 after a clear error."""
    import resource

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
    try:
        run(folder)
    except DiskError as error:
        sys.exit(4 if "step_000000003" in str(error) else f"unclear: {error}")


class _HookedSource(ToySource):
    def __init__(self, hook: Callable[[int], Any]) -> None:
        self.hook = hook

    def batch(self, first: int, count: int) -> Batch:
        self.hook(first)
        return super().batch(first, count)
