"""Publishing a file."""

from __future__ import annotations

from pathlib import Path

from cosmos_distill.files import replacing


def publish(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, old or new at any moment.

    Raises DiskError when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
