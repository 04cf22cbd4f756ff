"""Checkpoints of ``torch.save``, without executing their pickle.

Since torch 1.6 they are zip archives of stored (not compressed) entries, which are mapped here: ``data.pkl``
names each storage by its entry ``data/<key>``. Before, and inside of other pickles until today, one pickle
came after another with the bytes of the storages behind them ("legacy").
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cosmos_distill.arrays import pickles
from cosmos_distill.arrays.companions import LARGEST
from cosmos_distill.arrays.rebuild import Storage
from cosmos_distill.files import regular

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30


def read(path: Path) -> Any:
    """The inert content of a checkpoint; :func:`~cosmos_distill.arrays.rebuild.tensor` makes its tensors,
    which are mapped: the file must not be changed in place while they are used.

    Raises:
        OSError: it cannot be opened.
        ValueError: no zip archive of ``torch.save``, damaged, or it names what no tensor needs.
    """
    size = regular(path)
    mapped: list[torch.UntypedStorage] = []

    def bytes_of(begin: int, end: int) -> torch.UntypedStorage:
        if not mapped:
            whole: Any = torch.UntypedStorage.from_file(str(path), False, size)
            mapped.append(whole)
        part: Any = mapped[0][begin:end]
        return part

    with path.open("rb") as file:
        return _read(file, size, bytes_of, str(path))


def is_script(path: Path) -> bool:
    """Whether a file is a whole archive of TorchScript, a program. It is neither loaded nor run.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        return False


def read_bytes(content: bytes) -> Any:
    """The same of a checkpoint that is in memory, which its tensors share.

    Raises:
        ValueError: as :func:`read` does.
    """
    whole = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage() if content else None

    def bytes_of(begin: int, end: int) -> torch.UntypedStorage:
        part: Any = torch.UntypedStorage(0) if whole is None else whole[begin:end]
        return part

    return _read(io.BytesIO(content), len(content), bytes_of, "it")


def _read(file: BinaryIO, size: int, bytes_of: Callable[[int, int], torch.UntypedStorage], path: str) -> Any:
    """The content of the zip archive in ``file``; ``bytes_of`` its bytes from one place to another."""
    try:
        entries = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise ValueError(f"{path} is no torch checkpoint that can be mapped ({error})") from error
    roots = [
        name.partition("/")[0] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(roots) != 1:
        raise ValueError(f"{path} is no torch checkpoint: it has {len(roots)} entries data.pkl")
    root = roots[0]
    if f"{root}/constants.pkl" in entries:
        raise ValueError(f"{path} is TorchScript, a program, where a checkpoint of tensors is wanted")

    def place(name: str) -> tuple[int, int]:
        """Where the bytes of an entry begin and end."""
        info = entries.get(f"{root}/{name}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"its entry {name[:40]!r} is missing or compressed")
        if not 0 <= info.header_offset <= size:
            raise ValueError(f"its entry {name[:40]!r} is damaged")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) != _LOCAL_HEADER or header[:4] != _ZIP:
            raise ValueError(f"its entry {name[:40]!r} is damaged")
        begin = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
        if not begin <= begin + info.file_size <= size:
            raise ValueError(f"its entry {name[:40]!r} reaches beyond the end of the file")
        return begin, begin + info.file_size

    def content(name: str) -> bytes:
        begin, end = place(name)
        file.seek(begin)
        return file.read(end - begin)

    def persistent(said: Any) -> Storage:
        kind, key, numel = _description(said)
        storage = Storage.named(kind)
        begin, end = place(f"data/{key}")
        if numel * storage.dtype.itemsize > end - begin:
            raise ValueError(f"storage {key[:40]!r} says {numel} elements and has {end - begin} bytes")
        data: Any = bytes_of(begin, end)
        # A vector load of a number that does not lie on a multiple of its size is slow or worse.
        storage.data = data.clone() if begin % storage.dtype.itemsize else data
        return storage

    try:
        if f"{root}/byteorder" in entries and content("byteorder").decode("latin1") != sys.byteorder:
            raise ValueError("its bytes are in the order of another machine")
        return pickles.read(io.BytesIO(content("data.pkl")), persistent)
    except ValueError as error:
        raise ValueError(f"{path} is not read: {error}") from error


def read_any(path: Path) -> Any:
    """The same of any pickle: one of ``torch.save`` of now or before 1.6, or an ordinary one.

    Its first bytes say which, whatever it is called. Only the first kind is mapped.

    Raises:
        OSError: it cannot be opened.
        ValueError: damaged, too large, or it names what no array and no tensor needs.
    """
    if regular(path) > 2 * LARGEST:
        raise ValueError(f"{path} has more than {2 * LARGEST} bytes")
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            return read(path)
        file.seek(0)
        content = file.read()
    try:
        return read_legacy(content) if content.startswith(_LEGACY) else pickles.read(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{path} is not read: {error}") from error


def read_legacy(content: bytes) -> Any:
    """The same for what torch wrote before 1.6, given whole. Of a storage that was saved alone, that storage.

    Raises:
        ValueError: damaged, or it names what no tensor needs.
    """
    stream = io.BytesIO(content)
    if pickles.read(stream) != MAGIC or pickles.read(stream) != PROTOCOL:
        raise ValueError("it is no torch checkpoint")
    machine = pickles.read(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") != (sys.byteorder == "little"):
        raise ValueError("its bytes are in the order of another machine")
    storages: dict[str, tuple[Storage, int]] = {}

    def persistent(said: Any) -> Storage:
        kind, key, numel = _description(said)
        if key not in storages:
            storages[key] = Storage.named(kind), numel
        return storages[key][0]

    found = pickles.read(stream, persistent)
    keys = pickles.read(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it is damaged (the list of its storages)")
    for key in keys:
        if key not in storages:
            raise ValueError("it is damaged (a storage that nothing uses)")
        storage, numel = storages[key]
        if stream.read(8) != struct.pack("<q", numel):
            raise ValueError(f"storage {key[:40]!r} is damaged")
        length = numel * storage.dtype.itemsize
        if length > len(content) - stream.tell():
            raise ValueError(f"storage {key[:40]!r} reaches beyond the end of the file")
        storage.data = (
            torch.frombuffer(bytearray(stream.read(length)), dtype=torch.uint8).untyped_storage()
            if length
            else torch.UntypedStorage(0)
        )
    return found


def _description(said: Any) -> tuple[Any, str, int]:
    """Type, key and number of elements of a storage, from the id by which a pickle refers to it."""
    if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage":
        raise ValueError("it refers to what is no storage")
    _, kind, key, _, numel, *rest = said
    if rest and rest[0] is not None:
        raise ValueError("it has a view of a storage, as torch has not written them since 0.4")
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 2**62:
        raise ValueError("it is damaged (the description of a storage)")
    return kind, key, numel
