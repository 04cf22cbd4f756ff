"""A progress bar with an estimate, and safe points inside long loops without checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cosmos_distill.files import to_json
from cosmos_distill.launch import ranks
from cosmos_distill.storage import disk_errors, own
from cosmos_distill.train.guard import Interrupted, StopFlag


class Work:
    """Counted work that can be stopped between two pieces."""

    def __init__(self, bar: Progress, title: str, total: int, stop: StopFlag, kept: str) -> None:
        self._bar, self._stop, self._title, self._kept = bar, stop, title, kept
        self._task = bar.add_task(title, total=total)

    def advance(self, pieces: int = 1) -> None:
        """Count ``pieces`` as done.

        Raises:
            Interrupted: a stop was requested, and there is no other rank that would wait for this one.
        """
        self._bar.advance(self._task, pieces)
        if ranks.world() == 1:
            self._end(self._stop.requested)

    def together(self) -> None:
        """Stop all ranks if one was asked to. All of them have to call this.

        Raises:
            Interrupted: on all ranks.
        """
        self._end(ranks.any_rank(self._stop.requested))

    def _end(self, wanted: bool) -> None:
        if wanted:
            name = self._stop.name or "another rank"
            raise Interrupted(f"'{self._title}' stopped by {name}; {self._kept}")


@contextmanager
def work(console: Console, title: str, total: int, stop: StopFlag, kept: str) -> Iterator[Work]:
    """Show progress over ``total`` pieces; ``kept`` says what a stop leaves behind."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Without a terminal the bar would come out once, when it no longer helps.
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield Work(bar, title, total, stop, kept)


class Log:
    """``log.jsonl`` of a stage that does not train: one line per batch, appended. Rank 0 writes it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"
        self._begin = time.monotonic()

    def line(self, **values: Any) -> None:
        """Append ``values`` and the seconds since this process began the stage."""
        if not ranks.is_main():
            return
        own(self._path)
        with disk_errors(self._path), self._path.open("a") as stream:
            stream.write(to_json({**values, "wall": round(time.monotonic() - self._begin, 3)}) + "\n")
