"""Publishing a file, the one way: it appears whole or not at all, with the permissions of the user's files,
and a full disk is said in words.

Torch-free at import: every part may use it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.files import to_json

if TYPE_CHECKING:
    from torch import Tensor

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class DiskError(OSError):
    """A file could not be written: the disk is full, or the place does not take it. The message says which
    file and what to do; what was there before is untouched."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system, or safetensors in its place, raises while ``path`` is written into a
    :class:`DiskError` with advice."""
    try:
        with _system_errors():
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


@contextmanager
def _system_errors() -> Iterator[None]:
    """What safetensors and torch raise where the disk fails, as the system's error."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from error  # torch fails once more where it closes its archive
        if type(error).__name__ != "SafetensorError":  # by name: nothing here imports the library
            raise
        number = re.search(r"os error (\d+)", str(error))  # it comes without an errno
        raise OSError(int(number[1]) if number else 0, str(error)) from error


def own(path: Path) -> None:
    """Make sure that appending to ``path``, or cutting it, changes no other file.

    Raises:
        DiskError: it is a link, or something else than a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DiskError(
            f"{path} is a link or no file, and what is written there would go elsewhere: remove it"
        )


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


def publish(path: Path, content: str | bytes) -> Path:
    """Write ``content``, text as UTF-8, so that ``path`` holds either its old content or all of the new one.

    Raises:
        DiskError: the disk is full, or the folder cannot be written; nothing is left behind then.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def publish_json(path: Path, document: Any, **options: Any) -> Path:
    """Publish strict JSON (:func:`~cosmos_distill.files.to_json`) that ends in a line end."""
    return publish(path, to_json(document, **options) + "\n")


def publish_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Publish a safetensors file with a checksum of its tensors, with which
    :func:`cosmos_distill.arrays.named.load` compares them.

    Raises:
        DiskError: on a full disk or an unwritable folder; an older file at ``path`` is untouched.
    """
    from cosmos_distill.arrays.named import CHECKSUM, METADATA, digest

    with replacing(path) as temporary:
        write_tensors(tensors, temporary, {**metadata, CHECKSUM: digest(tensors)}, METADATA)
    return path


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None, key: str
) -> None:
    """Write a safetensors file, bytes decided by the arguments alone, and wait until it is on disk: for what
    is published with others, as a folder.

    The metadata is one JSON string under one ``key``, since the library writes several keys in random order.
    """
    from safetensors.torch import save_file

    header = None if metadata is None else {key: to_json(metadata, sort_keys=True)}
    with created(path):  # safetensors makes files that only their owner can read
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, header)
    with path.open("rb") as file:
        os.fsync(file.fileno())
