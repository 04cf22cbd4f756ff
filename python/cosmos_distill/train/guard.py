"""What may stop a run: a signal, or too many non-finite steps in a row."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop, and its state is on disk."""


class NonFiniteError(RuntimeError):
    """Too many steps of a role in a row, or all steps of the student, had a non-finite loss or gradient."""


_ADVICE = (
    "No weight and no checkpoint is touched by these steps. Look at their samples, or start anew with a "
    "lower learning rate, a clip_norm or less guidance"
)


class NonFinite:
    """Counts steps that were skipped because something in them was not finite, by the roles of their
    phase: the good steps of one say nothing of another.

    Args:
        max_in_a_row: bad steps of a role in a row at which :meth:`bad` raises.

    Attributes:
        total: steps skipped.
        skipped: of these, the steps of a role's phase.
        in_a_row: a role's steps that were skipped since its last good one.
        left_out: samples that a good step of a role did without, since their loss was not finite.
        last: term and step of a role's last skipped step.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.in_a_row: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.last: dict[str, tuple[str, int]] = {}

    def good(self, roles: Collection[str], left_out: int = 0) -> None:
        """A step of the roles in ``roles`` went through, without ``left_out`` of its samples."""
        for role in roles:
            self.in_a_row.pop(role, None)
            if left_out:
                self.left_out[role] += left_out

    def bad(self, roles: Collection[str], step: int, term: str) -> None:
        """Step ``step`` (0-based), the phase of the roles in ``roles``, was skipped because of ``term``.

        Raises:
            NonFiniteError: on the ``max_in_a_row``-th call for a role without a :meth:`good` between.
        """
        self.total += 1
        self.skipped.update(roles)
        self.in_a_row.update(roles)
        self.last |= dict.fromkeys(roles, (term, step))
        if stuck := [role for role in roles if self.in_a_row[role] >= self.max_in_a_row]:
            raise NonFiniteError(
                f"{term} was not finite in {self.in_a_row[stuck[0]]} steps in a row of {' and '.join(stuck)} "
                f"(the last is step {step}). {_ADVICE}"
            )

    def require_a_step(self, role: str, steps: int) -> None:
        """To be called for a role that took none of the ``steps`` of its stage, at the end.

        Raises:
            NonFiniteError: always, saying why.
        """
        if role not in self.last:
            raise NonFiniteError(
                f"{role} had no phase in all {steps} steps of this stage: there is nothing that it has learnt"
            )
        term, step = self.last[role]
        raise NonFiniteError(
            f"{role} took not one step in all {steps} steps of this stage: {term} was never finite in its "
            f"{self.skipped[role]} steps (the last is step {step}). {_ADVICE}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers and names."""
        return {
            "skipped": dict(self.skipped),
            "in_a_row": dict(self.in_a_row),
            "left_out": dict(self.left_out),
            "last": {role: list(what) for role, what in self.last.items()},
        }

    def restore(self, total: int, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`; of a checkpoint that has no counts by role, an empty one."""
        self.total = total
        self.skipped = Counter(state.get("skipped", {}))
        self.in_a_row = Counter(state.get("in_a_row", {}))
        self.left_out = Counter(state.get("left_out", {}))
        self.last = {role: (term, step) for role, (term, step) in state.get("last", {}).items()}

    def record(self) -> dict[str, int]:
        """The counts for a line of the log."""
        return {
            "skipped": self.total,
            **{f"skipped/{role}": count for role, count in self.skipped.items()},
            **{f"left_out/{role}": count for role, count in self.left_out.items()},
        }


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
