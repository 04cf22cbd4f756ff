"""What a tar archive holds and where: found by reading its headers, remembered, and never believed.

Nothing is extracted, and no name in an archive is opened, so that links, devices and names that lead
elsewhere are no danger; they are named and left out. An archive that ends too early keeps what is whole
before its end.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.opening import open_regular
from cosmos_distill.members import Member, Url

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".tar"
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 2**20
"""Bytes of a long name or of further attributes, which tarfile reads at once, whatever a header promises."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}  # fmt: skip


class Contents(NamedTuple):
    """An archive's files.

    Attributes:
        members: In the order of the archive, the first of every name.
        starts: Where the header of each begins.
        left_out: Why, by the name of what is no file that can be used.
        end: Where the last one ends.
        fault: Why the archive holds less than it should; None: it is whole.
    """

    members: tuple[Member, ...]
    starts: tuple[int, ...]
    left_out: dict[str, str]
    end: int
    fault: str | None


def contents(archive: Path | Url, index: Index) -> Contents:
    """What ``archive`` holds, as remembered for as long as it stays what it is.

    Raises:
        DataError: it cannot be opened, is compressed, or is no tar archive.
    """
    try:
        return of(archive, index.fact(archive, "tar", walk))
    except OSError as error:
        raise DataError(f"{archive} cannot be read ({error.strerror or error})") from error


def of(archive: Path | Url, found: Mapping[str, Any]) -> Contents:
    """What :func:`walk` found."""
    return Contents(
        tuple(Member(archive, name, offset, size) for name, offset, size, _ in found["members"]),
        tuple(start for _, _, _, start in found["members"]),
        found["left_out"],
        found["end"],
        found["fault"],
    )


class _Headers(io.RawIOBase):
    """An archive of which headers are read and no contents: tarfile would take a promised terabyte."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header that promises {size} bytes")
        parts, left = [], size
        while left and (part := self._stream.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def walk(archive: Path | Url) -> dict[str, Any]:
    """What an archive holds, read anew: :class:`Contents` as JSON values."""
    with open_regular(archive) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        begin = stream.read(_BLOCK) or b""
        if kind := next((kind for mark, kind in _COMPRESSED.items() if begin.startswith(mark)), None):
            raise DataError(
                f"{archive} is compressed ({kind}), so that no place in it can be sought: unpack it to a .tar"
            )
        stream.seek(0)
        headers, names = _Headers(stream), set[str]()
        members: list[tuple[str, int, int, int]] = []
        left_out: dict[str, str] = {}
        end, fault = 0, None
        try:
            tar = tarfile.TarFile(fileobj=headers, mode="r", errorlevel=0)
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if info.offset < end or info.size < 0:
                    raise ValueError(f"a header at byte {info.offset} that leads back")
                if info.offset_data + info.size > size:
                    raise ValueError(f"{info.name!r} at byte {info.offset}, cut off")
                end = tar.offset
                name = info.name.removeprefix("./")
                if info.isdir():
                    continue
                if (reason := _unusable(info)) is not None:
                    left_out[_shown(name)] = reason
                elif name in names:
                    left_out[name] = "is there twice"
                    members = [one for one in members if one[0] != name]
                else:
                    names.add(name)
                    members.append((name, info.offset_data, info.size, info.offset))
            end = tar.offset
            stream.seek(end)
            last = headers.read(_BLOCK)
            if last != bytes(_BLOCK):
                what = "something that is no header" if len(last) == _BLOCK else "no mark of its end"
                raise ValueError(f"{what} at byte {end}")
        except (tarfile.TarError, ValueError, OverflowError, EOFError, LookupError) as error:
            if not members:
                raise DataError(f"{archive} is no tar archive, or damaged ({error})") from error
            fault = f"damaged or cut off: {error}; what is whole before that is used"
    return {"members": members, "left_out": left_out, "end": end, "fault": fault}


def _unusable(info: tarfile.TarInfo) -> str | None:
    """Why a member is no plain file; None if it is one."""
    if info.issym() or info.islnk():
        return "is a link"
    if not info.isreg():
        return "is a device or a pipe"
    if info.issparse():
        return "is stored with holes"
    try:
        info.name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if not info.name or "\0" in info.name:
        return "has no name that a file could have"
    return None


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
