"""How a command ends when something is wrong: its status, and what is said."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cosmos_distill.errors import UserError
from cosmos_distill.files import printable
from cosmos_distill.launch import ranks
from cosmos_distill.parallel.agreement import is_shared

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_NARROWEST = 30
"""Columns of a terminal in which a message is framed."""
_COLOURS = {FAILED: "red", REFUSED: "red", INTERRUPTED: "yellow"}


def status_of(error: BaseException) -> int:
    """The exit status that an exception stands for."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"Interrupted", "KeyboardInterrupt"}:
        return INTERRUPTED
    return REFUSED if isinstance(error, UserError) else FAILED


def end(error: BaseException, *, traceback: bool, running: bool) -> int:
    """Say why the command ends, and return its status; of several ranks one speaks (see
    :func:`cosmos_distill.launch.ranks.abort`).

    Args:
        running: whether it runs a recipe, which the same command may go on with.
    """
    status = status_of(error)
    title = {REFUSED: "cannot run this", INTERRUPTED: "interrupted"}.get(status, "failed")
    # What every rank finds out alike, rank 0 says.
    names = {kind.__name__ for kind in type(error).__mro__}
    agreed = bool(names & {"Refusal", "Interrupted"}) or is_shared(error)

    def say(rank: str = "") -> None:
        if traceback and status in (FAILED, REFUSED):
            from rich.console import Console

            Console(stderr=True).print_exception()
        text = _text(error, status, running)
        if rank:
            text += "\nIf this is about a lost connection, another rank has died: torchrun names it below."
        _box(f"{title}, {rank}" if rank else title, text, _COLOURS[status])

    if ranks.initialized():
        ranks.abort(error, status, say, agreed=agreed)
    say()
    return status


def _text(error: BaseException, status: int, running: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        then = " The same command goes on from what is complete." if running else ""
        return f"Stopped at once.{then}"
    text = str(error) or type(error).__name__
    if status != FAILED or type(error).__module__.startswith("cosmos_distill"):
        return text
    # Whether the same command would fail in the same way again is not known here.
    kept = "What is complete is kept. " if running else ""
    return f"{type(error).__name__}: {text}\n\n{kept}--traceback shows where it happened."


class Outlived:
    """A standard stream that the command goes on without once it cannot be written: its reader has gone, or,
    for a run, whose results are in files, its disk is full."""

    def __init__(self, stream: Any, lost: type[OSError]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        """Like that of a text file."""
        try:
            return int(self._stream.write(text))
        except self._lost:
            self.leave()
            return len(text)

    def flush(self) -> None:
        """Like that of a text file."""
        try:
            self._stream.flush()
        except self._lost:
            self.leave()

    def leave(self) -> None:
        """Write into nothing from here on."""
        # What is still buffered goes nowhere instead of failing once more at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outlived(lost: type[OSError]) -> Iterator[None]:
    """Standard output and error as :class:`Outlived`, where ``lost`` is raised by them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Outlived(stream, lost) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            try:
                stream.flush()
            except OSError:
                Outlived(stream, lost).leave()


def open_streams() -> None:
    """Give a process that was started without standard streams some that lead nowhere: else the first files
    that it opens take their places. Let others show a character that they have not as a question mark."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
        # A terminal of another encoding must not end a run of hours at its last table.
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _box(title: str, text: str, colour: str) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console, text = Console(stderr=True), printable(text)
    if console.width < _NARROWEST:  # as COLUMNS=0 has it: nothing of the text would be seen
        print(f"{title}: {text}", file=sys.stderr)
        return
    console.print(Panel(Text(text), title=title, title_align="left", border_style=colour))
