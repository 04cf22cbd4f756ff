"""A budget of time."""

from __future__ import annotations

import time


class OutOfTime(Exception):
    """The budget is used up, or what is next would not fit."""


class Clock:
    """Counts from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = self._lap = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    @property
    def over(self) -> bool:
        return self.left <= 0

    def need(self, seconds: float = 0.0) -> None:
        """Raises OutOfTime unless so much is left."""
        if self.left <= seconds:
            raise OutOfTime

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._lap = self._lap, time.monotonic()
        return self._lap - last
