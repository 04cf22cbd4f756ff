"""Files that appear whole or not at all, what may be opened, and hashes.

Standard library only: every part may use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LARGEST_JSON = 256 * 2**20
"""Bytes. What this package writes has kilobytes, and the index of the largest network some megabytes."""


def regular(path: Path) -> int:
    """Size in bytes of a regular file, links followed. Nothing is opened, so that a pipe cannot block.

    Raises:
        OSError: nothing is there, or it may not be looked at.
        ValueError: it is a folder, a named pipe, a device or a socket; the message names it.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "something else")
        raise ValueError(f"{path} is {kind}, not a file")
    return info.st_size


def inside(name: object) -> bool:
    """Whether ``name``, which another file mentions, is a relative path that cannot leave its folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        OSError: nothing is there, or it cannot be read.
        ValueError: not a regular file, too large, or not JSON; the message names it.
    """
    size = regular(path)
    if size > _LARGEST_JSON:
        raise ValueError(f"{path} has {size} bytes, too many for what it should hold")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; leaving the block syncs it and renames it to ``path``.

    A crash at any moment leaves the old file or the new one, never half of it. An error in the block, or
    while publishing, removes the temporary file and is passed on.
    """
    # The name carries no process number: what a kill leaves behind is overwritten by the same command.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a link of that name would lead the writer to another file
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises like :func:`regular`."""
    regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
