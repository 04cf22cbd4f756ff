"""Files of named tensors (safetensors): headers, contents, the checksum of the contents, folders of shards.

The library checks a header against the size of the file, every shape against its bytes, and that no tensor
overlaps another, before it returns anything; the tensors are mapped from the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cosmos_distill.files import absent, encodable, inside, mistaken, read_json, regular

State = dict[str, torch.Tensor]
METADATA = "cosmos_distill"
"""Key of the header under which this package's files describe themselves, as one JSON object."""
CHECKSUM = "weights_sha256"
_verified: set[tuple[str, int, int, int]] = set()


class Entry(NamedTuple):
    """What a header says of one array."""

    dtype: str
    """As its format spells it: ``F32`` in safetensors, ``float32`` in NumPy's files."""
    shape: tuple[int, ...]


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, whatever the order or the file they are in."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        # fp32 goes without saying: pairs of earlier versions, which are fp32 only, keep their checksums.
        kind = "" if value.dtype == torch.float32 else f" {value.dtype}"
        total.update(f"{name} {list(value.shape)}{kind}".encode())
        total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def header(path: Path) -> dict[str, Entry]:
    """Types and shapes, without reading a tensor.

    Raises:
        OSError: it cannot be opened.
        ValueError: not a regular file, or damaged.
    """
    with _opened(path) as file:
        return {
            name: Entry(part.get_dtype(), tuple(part.get_shape()))
            for name in file.keys()  # noqa: SIM118
            for part in [file.get_slice(name)]
        }


def metadata(path: Path) -> dict[str, Any]:
    """How a file of this package describes itself; empty for any other safetensors file.

    Raises:
        OSError: it cannot be opened.
        ValueError: not a regular file, or damaged.
    """
    with _opened(path) as file:
        said = _described(file, path)
    said.pop(CHECKSUM, None)
    return said


def load(path: Path, *, verify: bool = True) -> State:
    """All tensors, mapped: bytes are read when used, and the file must not be changed in place meanwhile.

    Of a file that carries a checksum they are compared with it, once in a process, if ``verify``.

    Raises:
        OSError: it cannot be opened.
        ValueError: not a regular file, damaged, or its tensors are not those of its checksum.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        wanted = _described(file, path).get(CHECKSUM)
    info = path.stat()
    key = str(path.resolve()), info.st_ino, info.st_size, info.st_mtime_ns
    if verify and wanted is not None and key not in _verified:
        if (found := digest(tensors)) != wanted:
            raise ValueError(
                f"{path} is damaged or was changed (its weights have the checksum {found[:12]}..., and it "
                f"says {str(wanted)[:12]}...): copy or download it again"
            )
        _verified.add(key)
    return tensors


def shards(folder: Path) -> list[Path]:
    """The safetensors files that make up a folder: those of its one index, or the only one there is.

    Raises:
        OSError: it cannot be looked at.
        FileNotFoundError: a file that the index names is not there.
        ValueError: the index names anything but safetensors files beside it, or which files are meant is
            unclear.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) != 1:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{folder} holds {len(files)} .safetensors files and {len(indices)} indices: name one file"
            )
        return files
    index = read_json(indices[0])
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{indices[0]} is no index of sharded weights (it has no weight_map)")
    outside = [
        name
        for name in named.values()
        if not inside(name) or Path(name).name != name or not name.endswith(".safetensors")
    ]
    if outside:
        raise ValueError(
            f"{indices[0]} points outside its folder, or at no .safetensors file: {str(outside[0])[:200]!r}"
        )
    found = [folder / name for name in sorted(set(named.values()))]
    if lost := [reason for path in found if (reason := absent(path))]:
        more = f" ({len(lost)} of {len(found)} are lost)" if len(lost) > 1 else ""
        raise FileNotFoundError(f"{lost[0]}, which {indices[0].name} names{more}: download it, too")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    regular(path)
    if not encodable(path):
        raise ValueError(f"{path} has a name that is not UTF-8, which safetensors cannot open: rename it")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, RuntimeError) as error:  # the second where it cannot be mapped
        if (instead := mistaken(path)) is not None:
            raise ValueError(f"{path} {instead}") from error
        raise ValueError(f"{path} is damaged ({error}): copy or download it again") from error


def _described(file: Any, path: Path) -> dict[str, Any]:
    try:
        said = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged (its description is not JSON: {error})") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} is damaged (its description is no JSON object)")
    return said
