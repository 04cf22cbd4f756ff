"""Open a file that a user named, and nothing else: no pipe that blocks, no device, no folder."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from cosmos_distill.data.errors import DataError


class _Bytes(io.FileIO):
    """A file whose ``seek`` answers with a negative number, as FFmpeg expects, where a place does not exist:
    damaged files send it there, and an exception could not pass through its C code."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            return -(error.errno or 1)


def open_regular(path: Path) -> io.FileIO:
    """The bytes of ``path``, unbuffered. A name is a name: it may hold colons, patterns or anything else.

    Raises DataError when it is not there, cannot be read, is empty, or is no regular file. A named pipe does
    not block: what it is is looked at before and after it is opened, since names can be exchanged between.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{path} cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    file = _Bytes(handle, "rb")
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        file.close()
        raise DataError(f"{path} is {'empty' if stat.S_ISREG(status.st_mode) else 'no regular file'}")
    return file
