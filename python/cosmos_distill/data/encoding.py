"""Write encoded clips: shards that grow clip by clip, survive a kill at any moment, and come out the same.

A shard under way is a hidden file, to which one clip after the other is appended and waited for; the last
member of a clip says what the others must be, so that whoever goes on keeps every whole clip and cuts off the
rest. A whole shard is renamed to its name, and its index written beside it. Nothing in it tells when, where
or by how many processes it was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cosmos_distill.data.archives import of, walk
from cosmos_distill.data.container import pyav
from cosmos_distill.data.encoded_files import LARGEST, shard_name
from cosmos_distill.data.errors import DataError
from cosmos_distill.files import to_json
from cosmos_distill.members import Member, read_bytes
from cosmos_distill.storage import DiskError, disk_errors, publish_json, sync_folder

_BLOCK = tarfile.BLOCKSIZE
_RATE = 24
"""Frames per second that files of pixels state; what counts is stored with the latents."""


def narrowed(value: torch.Tensor) -> torch.Tensor:
    """The same numbers in the narrowest of bf16, fp16 and fp32 that holds all of them exactly, on the CPU."""
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            smaller = value.to(dtype)
            if torch.equal(smaller.float(), value):
                return smaller
    return value


def tensors(parts: Mapping[str, torch.Tensor]) -> bytes:
    """A member of tensors."""
    return save({name: narrowed(value) for name, value in parts.items()})


def pixels(frames: np.ndarray) -> bytes:
    """A member of frames, RGB uint8 [F, H, W, 3]: FFV1 in Matroska, which keeps every bit."""
    av = pyav()
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=_RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for image in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        container.mux(stream.encode())
    return file.getvalue()


class ShardWriter:
    """One shard, of the clips ``first`` .. ``first + count - 1``; goes on with what is there.

    Args:
        folder: Of the shards.
        number: Of the shard.
        count: Clips that it is to have, those that cannot be used included.

    Raises:
        DiskError: it cannot be written.
    """

    def __init__(self, folder: Path, number: int, first: int, count: int) -> None:
        self._path = folder / f"{shard_name(number)}.tar"
        self._index = folder / f"{shard_name(number)}.json"
        self._part = folder / f".{shard_name(number)}.tar.part"
        self._first, self._count = first, count
        self._records: list[dict[str, Any]] = []
        self._end = 0
        if not self._path.exists() and self._part.is_file():
            self._records, self._end = _whole_clips(self._part, first)
            with disk_errors(self._part):
                os.truncate(self._part, self._end)

    @property
    def done(self) -> int:
        """Clips that it has."""
        return len(self._records)

    def append(self, parts: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """Add the next clip: its parts by what stands behind the dot of their names, and its record."""
        number = self._first + self.done
        said: dict[str, list[Any]] = {}
        with disk_errors(self._part), self._part.open("ab") as file:
            if file.tell() != self._end:  # what a failed attempt of this process left
                file.truncate(self._end)
            at = self._end
            for kind, content in parts.items():
                said[kind] = [at + _BLOCK, len(content), hashlib.sha256(content).hexdigest()]
                at += _member(file, f"{number:09d}.{kind}", content)
            whole = {**record, "number": number, "parts": said}
            at += _member(file, f"{number:09d}.json", to_json(whole, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
        self._records.append(whole)
        self._end = at

    def publish(self) -> None:
        """Give the shard its name, and write its index. ValueError while clips are missing."""
        if self.done != self._count:
            raise ValueError(f"{self._path} has {self.done} of {self._count} clips")
        with disk_errors(self._part), self._part.open("ab") as file:
            file.truncate(self._end)
            file.write(bytes(2 * _BLOCK))
            file.flush()
            os.fsync(file.fileno())
        with disk_errors(self._path):
            self._part.replace(self._path)
            sync_folder(self._path.parent)
        _write_index(self._path, self._index, self._records)


def is_whole(folder: Path, number: int, first: int, count: int) -> bool:
    """Whether a shard is there with its index. One that a kill left without gets it; one that is damaged is
    taken away, to be made again."""
    path, index = folder / f"{shard_name(number)}.tar", folder / f"{shard_name(number)}.json"
    if not path.is_file():
        return False
    try:
        said = json.loads(index.read_bytes())
        if said["bytes"] == path.stat().st_size and len(said["clips"]) == count:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    records, end = _whole_clips(path, first)
    if len(records) == count and path.stat().st_size == end + 2 * _BLOCK:
        _write_index(path, index, records)
        return True
    with disk_errors(path):
        path.unlink()
    return False


def prepared(folder: Path) -> Path:
    """The folder of shards, there and without what a kill left half-written beside shards under way.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error
    return folder


def _write_index(path: Path, index: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    said = {"sha256": digest, "bytes": path.stat().st_size, "clips": list(records)}
    publish_json(index, said, sort_keys=True)  # the same bytes, whether records were kept or read again


def _member(file: Any, name: str, content: bytes) -> int:
    """Append one member; returns the bytes that it takes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    padding = -len(content) % _BLOCK
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    file.write(content)
    file.write(bytes(padding))
    return _BLOCK + len(content) + padding


def _whole_clips(path: Path, first: int) -> tuple[list[dict[str, Any]], int]:
    """Records of the whole clips at the beginning of a shard, which may end anywhere, and where they end."""
    try:
        found = of(path, walk(path))
    except (DataError, OSError):
        return [], 0
    records: list[dict[str, Any]] = []
    end = 0
    group: dict[str, Member] = {}
    for member in found.members:
        number, _, kind = member.member.partition(".")
        if number != f"{first + len(records):09d}":
            break
        if kind != "json":
            group[kind] = member
            continue
        try:
            record = json.loads(read_bytes(member, LARGEST))
            whole = record["number"] == int(number) and record["parts"].keys() == group.keys()
            if not whole or not all(_is(group[kind], *said) for kind, said in record["parts"].items()):
                break
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            break
        records.append(record)
        end = member.offset + member.size + -member.size % _BLOCK
        group = {}
    return records, end


def _is(member: Member, offset: int, size: int, digest: str) -> bool:
    """Whether a member is what its clip's record says."""
    if (member.offset, member.size) != (offset, size):
        return False
    return hashlib.sha256(read_bytes(member, LARGEST)).hexdigest() == digest
