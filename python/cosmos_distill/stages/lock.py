"""One process per run folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_distill.stages.manifest import Refusal


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder ``out`` for this process.

    The kernel drops the lock when its holder ends, however it ends, so there is no stale lock to
    clean up after a ``kill -9``; the number in the file only serves the message.

    Raises:
        Refusal: another living process holds it.
    """
    path = out / "run.lock"
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise Refusal(
                f"process {holder} is writing {out}: wait for it, stop it, "
                "or choose another folder with --out"
            ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
