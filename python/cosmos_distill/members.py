"""What a file is, wherever its bytes lie: a path, the address of a store, or a member of a tar archive.

Readers of clips and of the arrays beside them take a :data:`File` and see the same bytes, whether a video is
a file of its own, a member of an archive on disk, or one of an archive in a store that fsspec knows. What is
opened is always the file that was named or listed, at an offset that was found by looking: no name that an
archive holds is ever opened.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from cosmos_distill.files import regular

Stamp = tuple[int, int, int, int]
"""Size, times of the last change of content and of anything else, in ns, and the file's number."""
_ADDRESS = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)(?P<chain>::[^/]*)?:/{1,3}(?P<rest>[^/].*)?")
_ON_HUB = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")
_CONTENT_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "checksum", "md5")
"""What stores call the hash, or the version, of an object's content."""
_LARGEST_PART = 2**20
"""Bytes read at once while a whole file is hashed."""


@dataclass(frozen=True)
class Url:
    """A file in a store, by the address that fsspec takes."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self.url).suffix

    def info(self) -> dict[str, Any]:
        """What the store says of the object, once in a process.

        Raises:
            OSError: nothing is there, or the store cannot be asked.
        """
        return _info(self.url)

    def tag(self) -> str | None:
        """The store's own hash or version of the content; None where it has none."""
        found = self.info()
        return next((str(found[name]) for name in _CONTENT_TAGS if found.get(name)), None)


@dataclass(frozen=True)
class Member:
    """Bytes ``offset`` .. ``offset + size`` - 1 of an archive, which are a file by the name ``member``."""

    archive: Path | Url
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.member).name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self.member).suffix


File = Path | Url | Member


def address(root: Path | str) -> str | None:
    """The address that a root names; None for a place on this machine.

    A :class:`~pathlib.Path` folds the two slashes behind a protocol into one: they are put back.
    ``file://`` is a place on this machine by another name, and stays an address.
    """
    match = _ADDRESS.fullmatch(str(root))
    if match is None:
        return None
    protocol = match["protocol"].lower() + (match["chain"] or "")
    rest = match["rest"] or ""
    return f"{protocol}:///{rest}" if protocol in ("file", "local") else f"{protocol}://{rest}"


def not_here(path: object) -> str:
    """What to do where nothing is at ``path`` since it was meant as an address, or as a model's name on a
    hub: a clause that follows what is wrong. Empty where it looks like any other path."""
    text = str(path)
    if address(text) is not None:
        return "; addresses are not followed: download it, and name the file or folder here"
    if _ON_HUB.fullmatch(text) and not Path(text).parent.exists():
        return (
            "; if that is a model's name on a hub, download it (hf download NAME --local-dir FOLDER), and "
            "name the folder"
        )
    return ""


def store_of(url: str) -> tuple[Any, str]:
    """The file system of an address, of fsspec, and the path in it.

    Raises:
        OSError: the protocol is unknown, or needs a package that is not here.
    """
    try:
        import fsspec
    except ImportError as error:
        raise OSError(f"{url}: addresses need fsspec: pip install 'cosmos-distill[shards]'") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise OSError(f"{url} cannot be opened ({error})") from error
    return system, path


@lru_cache(maxsize=65536)
def _info(url: str) -> dict[str, Any]:
    with _store_errors(url):
        system, path = store_of(url)
        found: dict[str, Any] = system.info(path)
        if found.get("type") != "file":
            raise OSError(f"{url} is no file")
        if not isinstance(found.get("size"), int):
            raise OSError(f"{url}: its store does not say how long it is, so that no part of it can be found")
        return found


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Turn whatever a store raises into an OSError that names the address."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and url in str(error):
            raise
        said = str(error) or type(error).__name__
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{url}: {said}") from error


class _Bytes(io.FileIO):
    """A file whose ``seek`` answers with a negative number, as FFmpeg expects, where a place does not exist:
    damaged files send it there, and an exception could not pass through its C code."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:
            return -(error.errno or 1)


class _Part(io.RawIOBase):
    """Some bytes of an open file, as a file; closing it closes the other."""

    def __init__(self, whole: Any, offset: int, size: int) -> None:
        self._whole, self._offset, self._size, self._at = whole, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            return -errno.EINVAL
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        self._whole.seek(self._offset + self._at)
        done = 0
        while done < wanted and (part := self._whole.read(wanted - done)):
            view[done : done + len(part)] = part
            done += len(part)
        self._at += done
        return done

    def close(self) -> None:
        if not self.closed:
            self._whole.close()
        super().close()


def open_bytes(file: File) -> io.RawIOBase:
    """The bytes of a file, to be read and sought in, unbuffered.

    A named pipe does not block: what it is is looked at before and after it is opened, since names can be
    exchanged between.

    Raises:
        OSError: it is not there, cannot be opened, or is shorter than its place in an archive says.
        ValueError: it is no regular file.
    """
    if isinstance(file, Url):
        size = int(file.info()["size"])
        with _store_errors(file.url):
            system, path = store_of(file.url)
            return _Part(system.open(path, "rb"), 0, size)
    if isinstance(file, Member):
        whole = open_bytes(file.archive)
        if (end := whole.seek(0, os.SEEK_END)) < file.offset + file.size:
            whole.close()
            raise OSError(errno.EIO, f"{file}: its archive ends after {end} bytes")
        return _Part(whole, file.offset, file.size)
    regular(file)
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    opened = _Bytes(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        opened.close()
        raise ValueError(f"{file} is no regular file")
    return opened


def read_bytes(file: File, most: int) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: it cannot be read, or ends early.
        ValueError: it is no regular file, or has more than ``most`` bytes.
    """
    with open_bytes(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size > most:
            raise ValueError(f"{file} has {size} bytes, too many for what it should hold")
        stream.seek(0)
        found = bytearray(size)
        view, done = memoryview(found), 0
        while done < size and (count := stream.readinto(view[done:])):
            done += count
    if done < size:
        raise OSError(errno.EIO, f"{file}: ends after {done} of {size} bytes")
    return bytes(found)


def size_of(file: File) -> int:
    """Bytes of a file. Raises like :func:`open_bytes`."""
    if isinstance(file, Member):
        return file.size
    return int(file.info()["size"]) if isinstance(file, Url) else regular(file)


def stamp(file: File) -> Stamp:
    """What changes when the file does, as far as its place knows: of a member, the stamp of its archive; of
    an object of a store, its size and a number made of what the store says. OSError where nothing is."""
    if isinstance(file, Member):
        return stamp(file.archive)
    if isinstance(file, Url):
        said = file.info()
        system, path = store_of(file.url)
        with _store_errors(file.url):
            number = int(hashlib.sha256(str(system.ukey(path)).encode()).hexdigest()[:12], 16)
        return int(said["size"]), 0, 0, number
    info = file.stat()
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def place(file: File) -> str:
    """A name for the file that is the same by whichever way it is reached."""
    if isinstance(file, Member):
        return f"{place(file.archive)}#{file.offset}+{file.size}"
    if isinstance(file, Url):
        return file.url
    return f"{_real(str(file.parent))}/{file.name}"


@lru_cache(maxsize=256)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def content_hash(file: File) -> str:
    """Hexadecimal SHA-256 of a file's bytes; of an object of a store that keeps a hash or a version of what
    it holds, and of its members, that of the store's word instead of gigabytes that cross the network.

    Raises like :func:`open_bytes`.
    """
    archive = file.archive if isinstance(file, Member) else file
    if isinstance(archive, Url) and (tag := archive.tag()) is not None:
        where = (file.offset, file.size) if isinstance(file, Member) else ()
        return hashlib.sha256(repr((tag, archive.info()["size"], where)).encode()).hexdigest()
    found = hashlib.sha256()
    with open_bytes(file) as stream:
        while part := stream.read(_LARGEST_PART):
            found.update(part)
    return found.hexdigest()
