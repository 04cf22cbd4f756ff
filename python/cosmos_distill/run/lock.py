"""One process per run folder."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_distill.errors import Refusal


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder ``out`` for this process.

    The kernel drops the lock when its holder ends, however it ends, so there is no stale lock to
    clean up after a ``kill -9``; the number in the file only serves the message.

    Raises:
        Refusal: another living process holds it.
    """
    path = out / "run.lock"
    try:
        # A link would lead to another file, which is emptied below.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Refusal(f"{path} cannot be opened ({error.strerror}): remove it if it is a link") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refusal(f"{path} is no file: remove it, or choose another folder with --out")
    with open(handle, "r+") as stream:
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
