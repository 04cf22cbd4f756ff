"""Checkpoints of torch.distributed.checkpoint: a folder with ``.metadata`` and ``.distcp`` files.

``.metadata`` is a pickle that says which piece of which tensor lies where; it is kept as inert values
(:mod:`cosmos_distill.arrays.pickles`), and every number in it is checked against the files. A piece is a
torch checkpoint of one tensor inside a file of many.
"""

from __future__ import annotations

import io
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cosmos_distill.arrays import pickles, rebuild, torch_files
from cosmos_distill.arrays.lazy import Lazy
from cosmos_distill.arrays.pickles import Call, Name
from cosmos_distill.arrays.places import DISTRIBUTED
from cosmos_distill.files import absent, inside, regular

_HOME = "torch.distributed.checkpoint"
_NAMES = {
    f"{_HOME}.metadata": (
        "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata "
        "MetadataIndex StorageMeta _MEM_FORMAT_ENCODING"
    ),
    "torch.distributed._shard.sharded_tensor.metadata": "TensorProperties MEM_FORMAT_ENCODING",
    f"{_HOME}.filesystem": "_StorageInfo _StoragePrefix",
    "torch.serialization": "_get_layout",
    "pathlib": "PosixPath WindowsPath PurePosixPath Path",
    "pathlib._local": "PosixPath WindowsPath PurePosixPath Path",
}
_ADMITTED = pickles.ADMITTED | {(module, name) for module, names in _NAMES.items() for name in names.split()}
_LONGEST = 2**28
"""Bytes of ``.metadata``: a large network over a thousand ranks has a hundred megabytes."""


class Piece(NamedTuple):
    """Where a part of a tensor lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    begin: int
    length: int


def read(folder: Path) -> dict[str, Lazy]:
    """All tensors, by name, put together from their pieces one at a time when they are made.

    Raises:
        OSError: a file cannot be opened.
        ValueError: damaged, it names what no such checkpoint has, or a file outside of the folder.
    """
    path = folder / DISTRIBUTED
    if regular(path) > _LONGEST:
        raise ValueError(f"{path} has more than {_LONGEST} bytes")
    try:
        said = pickles.read(io.BytesIO(path.read_bytes()), admitted=_ADMITTED)
        state, places = (
            _attributes(said, "Metadata")["state_dict_metadata"],
            _attributes(said)["storage_data"],
        )
        found = {name: _sizes(one) for name, one in state.items() if _kind(one) == "TensorStorageMetadata"}
        pieces = _pieces(folder, places)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is not read: {error}") from error
    tensors = {}
    for name, (shape, dtype, chunks) in found.items():
        mine = []
        for offsets, sizes in chunks:
            place = pieces.get((name, offsets)) or pieces.get((name, None))
            if place is None:
                raise ValueError(f"{path}: a piece of {name[:200]} is nowhere")
            mine.append(Piece(offsets, sizes, *place))
        _require_whole(name, shape, mine, path)
        tensors[name] = Lazy(
            torch.Size(shape),
            dtype,
            lambda n=name, s=shape, d=dtype, m=mine: _assemble(n, s, d, m),  # type: ignore[misc]
        )
    if not tensors:
        raise ValueError(f"{path} names no tensors")
    return tensors


def _kind(value: Any) -> str:
    return value.function.name if isinstance(value, Call) else ""


def _attributes(value: Any, kind: str | None = None) -> dict[str, Any]:
    """Attributes of an object that was pickled as its class and a state."""
    if not isinstance(value, Call) or kind not in (None, _kind(value)):
        raise ValueError(f"it is damaged (no {kind})")
    state = value.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # an object with slots
        state = state[1]
    if not isinstance(state, dict):
        raise ValueError(f"it is damaged ({_kind(value)} without attributes)")
    return state


def _size(value: Any) -> tuple[int, ...]:
    if isinstance(value, Call) and _kind(value) == "Size":
        (value,) = value.args
    numbers = tuple(value)
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(numbers) > 16:
        raise ValueError("it is damaged (a size)")
    return numbers


def _sizes(value: Any) -> tuple[tuple[int, ...], torch.dtype, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Shape, type, and (offsets, sizes) of every piece."""
    said = _attributes(value)
    properties = said["properties"].state
    dtype = properties["dtype"] if isinstance(properties, dict) else properties[0]
    if not isinstance(dtype, Name) or dtype.module != "torch":
        raise ValueError("it is damaged (a type)")
    kind = getattr(torch, dtype.name, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"it has a tensor of {dtype}")
    chunks = [_attributes(chunk, "ChunkStorageMetadata") for chunk in said["chunks"]]
    return _size(said["size"]), kind, [(_size(c["offsets"]), _size(c["sizes"])) for c in chunks]


def _pieces(
    folder: Path, places: dict[Any, Any]
) -> dict[tuple[str, tuple[int, ...] | None], tuple[Path, int, int]]:
    found = {}
    sizes: dict[str, int] = {}
    for index, info in places.items():
        who, where = _attributes(index, "MetadataIndex"), _attributes(info, "_StorageInfo")
        name, begin, length = where["relative_path"], where["offset"], where["length"]
        if not isinstance(name, str) or not inside(name):
            raise ValueError(f"it points outside of its folder: {str(name)[:200]!r}")
        if where.get("transform_descriptors"):
            raise ValueError("its pieces are transformed (compressed), which is not read here")
        if name not in sizes:
            if reason := absent(folder / name):
                raise FileNotFoundError(f"{reason}, which {DISTRIBUTED} names: copy or download it, too")
            sizes[name] = regular(folder / name)
        if (
            type(begin) is not int
            or type(length) is not int
            or not 0 <= begin <= begin + length <= sizes[name]
        ):
            raise ValueError(f"{name} is shorter than it says: copy it again")
        offset = who.get("offset")
        found[who["fqn"], None if offset is None else _size(offset)] = (folder / name, begin, length)
    return found


def _require_whole(name: str, shape: tuple[int, ...], pieces: list[Piece], path: Path) -> None:
    """Raises ValueError unless the pieces lie in the tensor and are as many elements; a tensor of which some
    pieces overlap and others are missing is found when it is made."""
    fits = all(
        len(p.offsets) == len(p.sizes) == len(shape)
        and all(o + s <= n for o, s, n in zip(p.offsets, p.sizes, shape, strict=True))
        for p in pieces
    )
    if not fits or sum(prod(p.sizes) for p in pieces) != prod(shape):
        raise ValueError(f"{path}: {name[:200]} is not whole: its pieces do not make up {list(shape)}")


def _assemble(name: str, shape: tuple[int, ...], dtype: torch.dtype, pieces: list[Piece]) -> torch.Tensor:
    parts = []
    for piece in pieces:
        with piece.path.open("rb") as file:
            file.seek(piece.begin)
            content = file.read(piece.length)
        try:
            part = rebuild.tensor(torch_files.read_bytes(content))
        except ValueError as error:
            raise ValueError(f"{piece.path}: a piece of {name[:200]} is damaged ({error})") from error
        if part is None or part.dtype != dtype or tuple(part.shape) != piece.sizes:
            raise ValueError(f"{piece.path}: a piece of {name[:200]} is another than the metadata says")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    whole = torch.empty(shape, dtype=dtype)
    filled = torch.zeros(shape, dtype=torch.bool)
    for piece, part in zip(pieces, parts, strict=True):
        where = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.sizes, strict=True))
        whole[where] = part
        filled[where] = True
    if not filled.all():
        raise ValueError(f"{pieces[0].path.parent}: pieces of {name[:200]} overlap, and others are missing")
    return whole
