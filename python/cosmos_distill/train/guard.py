"""What may stop a run: a signal, or too many non-finite steps in a row."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop, and its state is on disk."""


class NonFiniteError(RuntimeError):
    """Too many optimiser steps in a row had a non-finite loss or gradient."""


class NonFinite:
    """Counts steps that were skipped because something in them was not finite.

    Args:
        max_in_a_row: the count in a row at which :meth:`bad` raises.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.total = 0

    def good(self) -> None:
        """A step went through."""
        self.in_a_row = 0

    def bad(self, step: int, term: str) -> None:
        """Step ``step`` (0-based) was skipped because of ``term``.

        Raises:
            NonFiniteError: on the ``max_in_a_row``-th call without a :meth:`good` between.
        """
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"{term} was not finite in {self.in_a_row} steps in a row (the last is step {step}). "
                "The newest checkpoint is intact, and no weight in it is touched by these steps. Look at the "
                "samples of these steps, or start anew with a lower learning rate or a clip_norm"
            )


class StopFlag:
    """Context manager: the first SIGINT or SIGTERM sets :attr:`requested`, a second one stops at once.

    Not under torchrun, which passes on what the terminal or the scheduler has sent to everyone already, and
    kills by itself who takes too long.

    Outside the main thread (where Python allows no signal handlers) it is only the flag.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def request(self, name: str = "request") -> None:
        """Ask for a stop as a signal would."""
        self.requested = True
        self.name = name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if "TORCHELASTIC_RUN_ID" in os.environ:
                return
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}")
        self.request(signal.Signals(number).name)
