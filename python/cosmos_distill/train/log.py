"""The log of a stage: one JSON object per line, TensorBoard if it is installed, and progress for a person."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cosmos_distill.train.checkpoint import disk_errors


class Window:
    """Means since the last log line.

    A term counts only the steps in which it occurred: the terms of a phase that runs every fifth step are
    neither diluted nor missed by a logging interval that never meets that phase.
    """

    def __init__(self, sums: Mapping[str, float] = {}, counts: Mapping[str, int] = {}) -> None:
        self.sums = dict(sums)
        self.counts = dict(counts)

    def add(self, values: Mapping[str, float]) -> None:
        """Count the values of one step."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean per key."""
        return {key: self.sums[key] / self.counts[key] for key in sorted(self.sums)}

    def state(self) -> dict[str, Any]:
        """For the checkpoint: a resumed run writes the same next line."""
        return {"sums": self.sums, "counts": self.counts}


class RunLog:
    """``log.jsonl``, ``tensorboard/`` and the progress bar of one stage.

    Every line has ``step`` (optimiser steps done) and ``wall`` (seconds of training so far, earlier
    processes included); the rest is named by its key.

    Args:
        folder: the stage's folder.
        step: steps done at the checkpoint that this process starts from; later lines are cut off.
        max_steps: length of the stage.
        title: shown in front of the progress.
        console: where progress goes, by default standard output: a bar on a terminal, else a line per record.
    """

    def __init__(
        self, folder: Path, step: int, max_steps: int, title: str, console: Console | None = None
    ) -> None:
        self.path = folder / "log.jsonl"
        self.max_steps = max_steps
        self.title = title
        self.console = console or Console()
        with disk_errors(self.path):
            truncate_after(self.path, step)
            self._file: TextIO = self.path.open("a")
            self._board = _tensorboard(folder / "tensorboard", step)
        self._started = time.monotonic()
        self._first = step
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(title, total=max_steps, completed=step, losses="")
            self._bar.start()

    def record(self, step: int, wall: float, values: Mapping[str, Any]) -> None:
        """Write one line and show it."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        with disk_errors(self.path):
            self._file.write(json.dumps({"step": step, "wall": round(wall, 3), **values}) + "\n")
            self._file.flush()
            if self._board is not None:
                for key, value in numbers.items():
                    self._board.add_scalar(key, value, step)
        losses = "  ".join(
            f"{key.removeprefix('loss/')} {value:.4g}"
            for key, value in numbers.items()
            if key.startswith("loss/")
        )
        if self._bar is not None:
            self._bar.update(self._task, losses=losses)
        elif losses:
            self.console.print(
                f"{self.title}  {step}/{self.max_steps}  {losses}  {self._remaining(step)} left",
                highlight=False,
                soft_wrap=True,
            )

    def advance(self, step: int) -> None:
        """Move the bar: ``step`` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def say(self, message: str) -> None:
        """A line for the person, above the bar."""
        self.console.print(message, highlight=False, soft_wrap=True, markup=False)

    def sync(self) -> None:
        """Wait until the lines are on disk: done before a checkpoint, which must not outlive its lines."""
        with disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._board is not None:
                self._board.flush()

    def close(self) -> None:
        """Close files and bar."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()

    def _remaining(self, step: int) -> str:
        per_step = (time.monotonic() - self._started) / max(1, step - self._first)
        seconds = int(per_step * (self.max_steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Silence:
    """The log of a rank that is not the one that writes."""

    def record(self, step: int, wall: float, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def truncate_after(path: Path, step: int) -> None:
    """Cut a log behind the last whole line whose step is at most ``step``.

    What lies behind was written after the checkpoint that the run resumes from and will be written again.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
    os.truncate(path, end)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a log file, in order (a half-written last line is left out)."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def _tensorboard(folder: Path, step: int) -> Any:
    """A SummaryWriter, or None where the optional package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
