"""What a file of pairs says of itself, without reading the pairs. Torch-free."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def shards(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Whole shards with their headers, from pair 0 on and past gaps, none overlapping the one before. Damaged
    ones are named in the log. Of each ``first``, ``count``, ``sha256``, ``names`` and ``bytes``."""
    found: list[tuple[Path, dict[str, Any]]] = []
    end = 0
    for path in sorted(folder.glob("pairs-*.safetensors")):
        try:
            header = _header(path)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError) as error:
            log.warning("%s is damaged (%s): its pairs are drawn again", path, error)
            continue
        if header["first"] >= end:  # else it was cut in another way, and others have its pairs
            found.append((path, header))
            end = header["first"] + header["count"]
    return found


def missing(folder: Path, pairs: int) -> int:
    """How many of the first ``pairs`` pairs are in no whole shard."""
    spans = ((header["first"], header["first"] + header["count"]) for _, header in shards(folder))
    return pairs - sum(max(0, min(last, pairs) - first) for first, last in spans)


def _header(path: Path) -> dict[str, Any]:
    """Metadata of a shard; ValueError when its length is not what its header says."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError("shorter than its header")
        (length,) = struct.unpack("<Q", prefix)
        size = path.stat().st_size
        if length > size:
            raise ValueError("shorter than its header")
        header = json.loads(file.read(length))
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if size != 8 + length + end:
        raise ValueError(f"{size} bytes long instead of {8 + length + end}")
    metadata = header["__metadata__"]
    if header["noise"]["shape"][0] != int(metadata["count"]):
        raise ValueError(f"{header['noise']['shape'][0]} pairs instead of {metadata['count']}")
    return {
        "first": int(metadata["first"]),
        "count": int(metadata["count"]),
        "sha256": metadata["sha256"],
        "names": tuple(json.loads(metadata["names"])),
        "bytes": size,
    }
