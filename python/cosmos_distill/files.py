"""What may be opened, hashes, and JSON that every reader takes; :mod:`~cosmos_distill.storage` writes.

Standard library only: every part may use it.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_HEAD, _TAIL = 512, 2**16 + 22
"""Bytes that tell what a file is, and those that hold the end of a zip archive."""
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


def mistaken(path: Path) -> str | None:
    """What a file that cannot be read as what it should be is instead, with what to do, in words that go on
    after its name: what downloads leave in the place of a file. None where its first and last bytes say
    nothing.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, path.stat().st_size - _TAIL))
        tail = file.read()
    if not head:
        return "is empty: download it again"
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "is a pointer of Git LFS and not the file itself: run git lfs pull where it was cloned"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and not the file: download it again, signed in where the site asks for that"
    if head.startswith(b"GGUF"):
        return "is GGUF, whose quantised weights are not read: take the model's .safetensors or .pt"
    if head.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in tail:
        return "was cut short (it begins and does not end): download it again"
    return None


def absent(path: Path) -> str | None:
    """Why there is nothing at ``path``, in words; None where there is something."""
    if path.exists():
        return None
    if path.is_symlink():
        return f"{path} is a link that leads nowhere"
    return f"{path} is missing"


def encodable(path: Path) -> bool:
    """Whether the name of ``path`` is UTF-8; archives of other systems leave names in other encodings."""
    return str(path).isascii() or not any("\ud800" <= char <= "\udfff" for char in str(path))


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
