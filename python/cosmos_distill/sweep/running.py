"""The runs of a sweep, each a process of its own, several at a time. Torch-free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosmos_distill.config import Recipe
from cosmos_distill.errors import Refusal
from cosmos_distill.launch.ranks import CHILD
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.sweep import sharing
from cosmos_distill.sweep.search import Round, Setting
from cosmos_distill.train.guard import Interrupted, StopFlag

POLL = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 120.0
"""Seconds that a run which is asked to stop has for saving its state."""


@dataclass
class Trial:
    """One run: a setting, with a seed, for a part of its steps."""

    setting: Setting
    round: Round
    recipe: Recipe
    command: tuple[str, ...]
    """The words behind ``cosmos-distill``."""
    out: Path
    seconds: float = 0.0
    shared: tuple[str, ...] = ()
    """Stages that came from other runs, or were there already."""
    error: str | None = None
    """Why it has no scores."""
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = dict(sharing.keys(self.recipe))

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.out.with_name(f"{self.out.name}.log")

    def lacks(self) -> set[str]:
        """Keys of the stages that it has yet to make."""
        return {key for name, key in self.keys.items() if not _complete(self.out / name)}


def _complete(folder: Path) -> bool:
    try:
        found = Manifest.read(folder)
    except Refusal:
        return False
    return found is not None and found.complete


def run_all(
    trials: Sequence[Trial],
    donors: Sequence[Path],
    jobs: int,
    stop: StopFlag,
    tell: Callable[[Trial], None],
) -> None:
    """Run ``trials``, ``jobs`` at a time; two that have a stage in common make it one after the other.

    One that fails does not stop the others: its ``error`` says why.

    Args:
        donors: Run folders whose complete stages may be used.
        tell: Called with each trial that has ended.

    Raises:
        Interrupted: ``stop`` said so; what is under way has saved its state.
    """
    waiting = list(trials)
    running: dict[_Process, Trial] = {}
    known = [*donors]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or running:
            if stop.requested:
                raise Interrupted("the same command goes on")
            busy = {key for trial in running.values() for key in trial.lacks()}
            for trial in waiting[:]:
                if len(running) == jobs:
                    break
                if trial.lacks() & busy:
                    continue
                waiting.remove(trial)
                process = _start(trial, known, threads)
                known.append(trial.out)
                if process is None:
                    tell(trial)
                    continue
                running[process] = trial
                busy |= trial.lacks()
            time.sleep(POLL)
            for process in [p for p in running if p.poll() is not None]:
                trial = running.pop(process)
                trial.seconds += time.monotonic() - process.began
                if process.returncode:
                    trial.error = _reason(trial, process.returncode)
                tell(trial)
    finally:
        _end(list(running))


class _Process(subprocess.Popen[bytes]):
    """A process, and when it began by the monotonic clock."""

    def __init__(self, command: Sequence[str], threads: int, log: Path) -> None:
        self.began = time.monotonic()
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"COLUMNS": "120", CHILD: "1"}
        with log.open("ab") as said:
            # A session of its own: Ctrl-C reaches this process alone, which asks the runs to stop.
            super().__init__(
                [sys.executable, "-m", "cosmos_distill", *command], stdin=subprocess.DEVNULL, stdout=said,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip


def _start(trial: Trial, donors: Sequence[Path], threads: int) -> _Process | None:
    """The trial's process; None where all of its stages are there."""
    try:
        trial.shared = tuple(sharing.adopt(trial.recipe, trial.out, donors))
    except (OSError, Refusal) as error:
        trial.error = str(error)
        return None
    if set(trial.shared) == set(trial.recipe.stages):
        return None
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    return _Process(trial.command, threads, trial.log)


def _end(processes: Sequence[_Process]) -> None:
    """Ask them to stop, as Ctrl-C would; a second time is an order."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(trial: Trial, status: int) -> str:
    """The last thing that a run which failed has said."""
    try:
        lines = [line.strip(" │╭╰─╮╯") for line in trial.log.read_text(errors="replace").splitlines()]
    except OSError:
        lines = []
    said = next((line for line in reversed(lines) if line), "it said nothing")
    return f"exit status {status}: {said} (all of it in {trial.log})"
