"""Publishing a file, with advice where the disk refuses."""

from __future__ import annotations

import errno
from pathlib import Path

from cosmos_distill.data.errors import DataError
from cosmos_distill.files import replacing


def publish(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, old or new at any moment.

    Raises DataError when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = (
            f"no room for its {len(content) / 2**20:.1f} MiB: free space and run the same command again"
            if full
            else "choose a folder that can be written"
        )
        raise DataError(f"{path} could not be written ({error.strerror}): {advice}") from error
