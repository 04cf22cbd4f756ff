"""Single safetensors files that are on disk when the call returns, and what a disk's errors mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cosmos_distill import files
from cosmos_distill.files import created, replacing, to_json

_METADATA = "cosmos_distill"


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or what is asked for is not in it, or the ranks hold no whole one."""


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None, key: str = _METADATA
) -> None:
    """Write a safetensors file, bytes decided by the arguments alone, and wait until it is on disk.

    The metadata is one JSON string under one ``key``, since the library writes several keys in random order.
    """
    header = None if metadata is None else {key: to_json(metadata, sort_keys=True)}
    with created(path):  # safetensors makes files that only their owner can read
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, header)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a safetensors file and rename it into place: ``path`` is always old or new, never half.

    Raises:
        DiskError: on a full disk or an unwritable folder; an older file at ``path`` is untouched.
    """
    with disk_errors(path), replacing(path) as temporary:
        write_tensors(tensors, temporary, metadata)
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file written by :func:`publish_tensors`; empty for any other safetensors file."""
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return content


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """:func:`cosmos_distill.files.disk_errors`, and the same for what safetensors raises in their place.

    Raises:
        DiskError: saying what to do.
    """
    with files.disk_errors(path):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # it comes without an errno
            raise OSError(int(number[1]) if number else 0, str(error)) from error
