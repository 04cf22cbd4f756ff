"""The log of a stage: one JSON object per line, TensorBoard if it is installed, and progress for a person."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
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

from cosmos_distill.files import to_json
from cosmos_distill.storage import disk_errors, own


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
            own(self.path)
            truncate_after(self.path, step)
            self._file: TextIO = self.path.open("a")
        self._board: Board | None = None
        self._on_board(lambda: setattr(self, "_board", Board.open(folder / "tensorboard", step)))
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
            self._file.write(to_json({"step": step, "wall": round(wall, 3), **values}) + "\n")
            self._file.flush()
        if (board := self._board) is not None:
            self._on_board(lambda: board.add(numbers, step))
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

    def close(self) -> None:
        """Close files and bar."""
        if self._bar is not None:
            self._bar.stop()
        if (board := self._board) is not None:
            self._on_board(board.close)
        with disk_errors(self.path):
            self._file.close()

    def _on_board(self, work: Callable[[], object]) -> None:
        """Do ``work``; where it fails, training goes on without TensorBoard: log.jsonl has the numbers."""
        try:
            work()
        except Exception as error:  # a full or read-only disk, or what a version of that package raises
            self._board = None
            self.say(
                f"no TensorBoard from here on ({type(error).__name__}: {error}); log.jsonl has all of it"
            )

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
    """All records of a log file, in order. What is no record is left out: a half-written last line, and lines
    damaged since."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


class Board:
    """An event file for TensorBoard, written at once by whoever calls.

    Torch's SummaryWriter leaves that to a thread, which on a full disk dies with a traceback and may have
    the next flush wait for it for ever.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb", buffering=0))  # nothing left to fail later
        self._write(file_version="brain.Event:2")
        # What an earlier process wrote of later steps is written again.
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    @classmethod
    def open(cls, folder: Path, step: int) -> Board | None:
        """One that goes on after ``step``, or None where the optional package is not installed."""
        try:
            return cls(folder, step)
        except ImportError:
            return None

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Write scalars by tag."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for tag, number in numbers.items():
            value = Summary.Value(tag=tag, simple_value=float(number))
            self._write(step=step, summary=Summary(value=[value]))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
