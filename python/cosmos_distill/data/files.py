"""Publishing a file: whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cosmos_distill.data.errors import DataError


def publish(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a crash at any moment leaves the old file or the new one.

    The bytes go to a temporary file beside ``path``, to the disk, and only then under the final name.
    Raises DataError when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = (
            f"no room for its {len(content) / 2**20:.1f} MiB: free space and run the same command again"
            if full
            else "choose a folder that can be written"
        )
        raise DataError(f"{path} could not be written ({error.strerror}): {advice}") from error
