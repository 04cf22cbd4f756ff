"""What a file of pairs says of itself, without reading the pairs. Torch-free."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cosmos_distill.files import regular

log = logging.getLogger(__name__)


def shards(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Whole shards with their headers, from pair 0 on and past gaps, none overlapping the one before. Damaged
    ones are named in the log. Of each ``first``, ``count``, ``sha256``, ``names`` and ``bytes``."""
    found: list[tuple[Path, dict[str, Any]]] = []
    end = 0
    for path in sorted(folder.glob("pairs-*.safetensors")):
        try:
            header = _header(path)
        except Exception as error:  # SafetensorError is one of its own
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
    """Metadata of a shard. The library compares its length with what its header says."""
    from safetensors import safe_open  # not needed for --help

    size = regular(path)
    with safe_open(path, "np") as file:
        metadata, pairs = file.metadata(), file.get_slice("noise").get_shape()[0]
    if pairs != int(metadata["count"]):
        raise ValueError(f"{pairs} pairs instead of {metadata['count']}")
    return {
        "first": int(metadata["first"]),
        "count": int(metadata["count"]),
        "sha256": metadata["sha256"],
        "names": tuple(json.loads(metadata["names"])),
        "bytes": size,
    }
