"""Files that appear whole or not at all, what may be opened, hashes, and JSON that every reader takes.

Standard library only: every part may use it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LARGEST_JSON = 256 * 2**20
"""Bytes. What this package writes has kilobytes, and the index of the largest network some megabytes."""


class DiskError(OSError):
    """A file could not be written: the disk is full, or the place does not take it. The message says which
    file and what to do; what was there before is untouched."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system raises while ``path`` is written into a :class:`DiskError` with advice."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            advice = "the disk is full: free some space, and the same command goes on"
        elif error.errno in _CLOSED:
            advice = "it is not writable: change its permissions or choose another --out"
        else:
            advice = "what was there before is untouched: once this is mended, the same command goes on"
        raise DiskError(f"cannot write {path} ({error.strerror or error}): {advice}") from error


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


def encodable(path: Path) -> bool:
    """Whether the name of ``path`` is UTF-8; archives of other systems leave names in other encodings."""
    return str(path).isascii() or not any("\ud800" <= char <= "\udfff" for char in str(path))


def own(path: Path) -> None:
    """Make sure that appending to ``path``, or cutting it, changes no other file.

    Raises:
        DiskError: it is a link, or something else than a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DiskError(
            f"{path} is a link or no file, and what is written there would go elsewhere: remove it"
        )


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

    Raises:
        DiskError: the disk is full, or the folder cannot be written.
    """
    # The name carries no process number: what a kill leaves behind is overwritten by the same command.
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with created(temporary):
                yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def created(path: Path) -> Iterator[None]:
    """Make an empty file and, after the block has written to it, give it the permissions it began with: those
    of the user's umask and of the folder, whatever the library that wrote it prefers."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = os.fstat(handle).st_mode & 0o7777
    finally:
        os.close(handle)
    yield
    path.chmod(mode)


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


def printable(text: str) -> str:
    """``text`` of a file or its name with all that a terminal obeys or cannot show, but line ends, as Python
    would escape it."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def finite(value: Any) -> Any:
    """``value`` of mappings, lists and scalars with every number that is not finite as a word, ``"nan"``,
    ``"inf"`` or ``"-inf"``: JSON has none, and strict readers refuse what Python would write."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def to_json(value: Any, **options: Any) -> str:
    """Strict JSON of :func:`finite` ``value``; ``options`` are those of :func:`json.dumps`."""
    return json.dumps(finite(value), allow_nan=False, **options)
