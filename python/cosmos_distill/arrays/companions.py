"""One array of a small file beside a clip: a prompt's embedding, the noise a clip was drawn from.

``.safetensors`` or ``.npz``. Type, shape and length are checked in the header first: a file of 200 bytes can
declare a terabyte, and a compressed one of ten megabytes can hold ten gigabytes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from cosmos_distill.arrays import named
from cosmos_distill.arrays.named import Entry
from cosmos_distill.members import File, open_bytes, read_bytes

T = TypeVar("T")
SUFFIXES = (".safetensors", ".npz")
LARGEST = 2**30
"""Bytes of one array: 70 times the noise of a clip at the published size."""
_MOST_ARRAYS = 1000
_MOST_DIMENSIONS = 16
_LONGEST_HEADER = 10_000
"""Bytes. NumPy takes no longer ones either, but reads them first."""
_LONGEST_TENSORS = 10**8
"""Bytes of a header of safetensors, as the library has it."""
_MOST_DEFLATED = 1032
"""Bytes that one byte of a deflate stream can become, at most."""
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip


def header(path: File, key: str) -> Entry:
    """Type and shape of the array ``key``, or of the only one that the file has; no array is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: damaged, neither .safetensors nor .npz, or without that array; the message names the file.
    """
    if path.suffix.lower() == ".safetensors":
        return _chosen(path, key, named.header(path) if isinstance(path, Path) else _header_of(path))[0]
    with _archive(path) as archive:
        part, _ = _chosen(path, key, _parts(path, archive))
    return Entry(part.dtype.name, part.shape)


def read(path: File, key: str) -> np.ndarray:
    """The array ``key``, or the only one that the file has, as fp32.

    Raises:
        OSError: it cannot be opened.
        ValueError: damaged, neither .safetensors nor .npz, without that array, larger than LARGEST, or not of
            numbers; the message names the file.
    """
    if path.suffix.lower() == ".safetensors":
        return _tensor(path, key)
    with _archive(path) as archive:
        part, name = _chosen(path, key, _parts(path, archive))
        if part.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} is of type {part.dtype}, not of real numbers")
        size = _size(path, name, part.shape, part.dtype.itemsize)
        if part.begin + size != part.member.file_size:
            raise ValueError(
                f"{path}: {name} declares {part.dtype} {list(part.shape)}, {size} bytes, and has "
                f"{part.member.file_size - part.begin}: make the file again"
            )
        try:
            with archive.open(part.member) as stream:
                stream.read(part.begin)
                content = stream.read(size)
                stream.read(1)  # whereupon zipfile compares the checksum
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error})") from error
        if len(content) != size:
            raise ValueError(
                f"{path}: {name} has {len(content)} bytes instead of {size}: make the file again"
            )
        values = np.frombuffer(content, part.dtype).reshape(part.shape, order="F" if part.fortran else "C")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite
            return np.array(values, np.float32, order="C")


def _tensor(path: File, key: str) -> np.ndarray:
    try:
        if isinstance(path, Path):
            name = _real(path, key, named.header(path))
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
        else:
            name = _real(path, key, _header_of(path))
            tensor = load(read_bytes(path, 2 * LARGEST))[name]
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    array: np.ndarray = tensor.float().numpy()
    return array


def _real(path: File, key: str, there: dict[str, Entry]) -> str:
    """The name of the array, which is of real numbers and no larger than one may be."""
    found, name = _chosen(path, key, there)
    if found.dtype not in _BYTES:
        raise ValueError(f"{path}: {name} is of type {found.dtype}, not of real numbers")
    _size(path, name, found.shape, _BYTES[found.dtype])
    return name


def _header_of(path: File) -> dict[str, Entry]:
    """What the header of a part of an archive, or of an object of a store, says; its arrays are not read."""
    with open_bytes(path) as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.seek(0)
        length = int.from_bytes(_exactly(raw, 8, path), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_TENSORS):
            raise ValueError(f"{path} is damaged (its header has {length} bytes)")
        try:
            said = json.loads(_exactly(raw, length, path))
            found = {
                name: (Entry(str(one["dtype"]), tuple(map(int, one["shape"]))), tuple(one["data_offsets"]))
                for name, one in said.items()
                if name != "__metadata__"
            }
            for entry, (begin, end) in found.values():
                if any(side < 0 for side in entry.shape):
                    raise ValueError(f"a shape of {list(entry.shape)}")
                bytes_of = prod(entry.shape) * _BYTES.get(entry.dtype, 0)
                if not 0 <= begin <= end <= size - 8 - length or bytes_of not in (0, end - begin):
                    raise ValueError("an array is not where the header says")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error
    return {name: entry for name, (entry, _) in found.items()}


def _exactly(raw: io.RawIOBase, count: int, path: File) -> bytes:
    found = b""
    while len(found) < count and (part := raw.read(count - len(found))):
        found += part
    if len(found) < count:
        raise ValueError(f"{path} is damaged (it ends after {len(found)} bytes of its header)")
    return found


class _Part(NamedTuple):
    """One array of an archive."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    member: zipfile.ZipInfo
    begin: int
    """Bytes of its own header."""


def _chosen(path: File, key: str, found: dict[str, T]) -> tuple[T, str]:
    name = next(iter(found)) if key not in found and len(found) == 1 else key
    if name not in found:
        there = ", ".join(repr(other[:60]) for other in sorted(found)[:5]) or "none"
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(f"{path}: has no array {key!r}, only {there}{more}")
    return found[name], name


def _size(path: File, name: str, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array that may be read."""
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{path}: {name} has {len(shape)} axes: make the file again")
    # An array without elements has strides as well, which have to fit into 64 bits.
    if (size := prod(side or 1 for side in shape) * itemsize) > LARGEST:
        raise ValueError(
            f"{path}: {name} declares {size} bytes, more than the {LARGEST} that an array here may have"
        )
    return prod(shape) * itemsize


@contextmanager
def _archive(path: File) -> Iterator[zipfile.ZipFile]:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a .safetensors or .npz file")
    with open_bytes(path) as raw:
        if raw.seek(0, os.SEEK_END) > 2 * LARGEST:
            raise ValueError(f"{path} has more bytes than a file of such arrays may have")
        try:
            archive = zipfile.ZipFile(io.BufferedReader(raw))
        except Exception as error:  # zipfile and struct raise what the bytes happen to be
            raise ValueError(f"{path} cannot be read ({error}): make the file again") from error
        with archive:
            yield archive


def _parts(path: File, archive: zipfile.ZipFile) -> dict[str, _Part]:
    members = archive.infolist()
    if len(members) > _MOST_ARRAYS:
        raise ValueError(f"{path} holds {len(members)} arrays: it is no file of one clip")
    found: dict[str, _Part] = {}
    for member in members:
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        if not deflated and member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: {member.filename[:60]!r} is compressed as NumPy never does: make the file again"
            )
        possible = member.compress_size * (_MOST_DEFLATED if deflated else 1)
        if member.file_size > possible + _MOST_DEFLATED:
            raise ValueError(
                f"{path}: {member.filename[:60]!r} declares {member.file_size} bytes and has "
                f"{member.compress_size}: make the file again"
            )
        try:
            with archive.open(member) as stream:
                dtype, shape, fortran, begin = _array_header(stream)
        except Exception as error:
            raise ValueError(
                f"{path}: {member.filename[:60]!r} cannot be read ({error}): make the file again"
            ) from error
        found[member.filename.removesuffix(".npy")] = _Part(dtype, shape, fortran, member, begin)
    return found


def _array_header(member: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    stream = io.BytesIO(member.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # the third is for structures with names beyond ASCII
        raise ValueError(f"its version is {version}")
    shape, fortran, dtype = readers[version](stream)
    if not all(type(size) is int and 0 <= size < 2**62 for size in shape) or dtype.hasobject:
        raise ValueError(f"its shape is {shape}, its type {dtype}")
    return dtype, shape, bool(fortran), stream.tell()
