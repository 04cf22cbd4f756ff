"""Open a file that a user named, and nothing else: no pipe that blocks, no device, no folder."""

from __future__ import annotations

import io
import os

from cosmos_distill.data.errors import DataError
from cosmos_distill.members import File, not_here, open_bytes


def open_regular(file: File) -> io.RawIOBase:
    """The bytes of ``file``, unbuffered. A name is a name: it may hold colons, patterns or anything else.

    Raises DataError when it is not there, cannot be read, is empty, or is no regular file.
    """
    try:
        stream = open_bytes(file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file{not_here(file)}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be opened ({error.strerror or error})") from error
    except ValueError as error:  # a null byte in the name; or a pipe, a folder, a device
        reason = "cannot be opened: its name holds a null byte" if "\0" in str(file) else "is no regular file"
        raise DataError(f"{file} {reason}") from error
    if not stream.seek(0, os.SEEK_END):
        stream.close()
        raise DataError(f"{file} is empty")
    stream.seek(0)
    return stream
