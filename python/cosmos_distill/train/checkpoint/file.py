"""Single safetensors files that are on disk when the call returns, and what a disk's errors mean."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cosmos_distill.arrays.named import CHECKSUM, METADATA, digest
from cosmos_distill.files import replacing


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None, key: str = METADATA
) -> None:
    """Write a safetensors file, bytes decided by the arguments alone, and wait until it is on disk.

    The metadata is one JSON string under one ``key``, since the library writes several keys in random order.
    """
    header = None if metadata is None else {key: json.dumps(metadata, sort_keys=True)}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, header)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a safetensors file and rename it into place: ``path`` is always old or new, never half.

    It carries a checksum of the tensors, with which :func:`cosmos_distill.arrays.named.load` compares them.

    Raises:
        CheckpointError: on a full disk or an unwritable folder; an older file at ``path`` is untouched.
    """
    with disk_errors(path), replacing(path) as temporary:
        write_tensors(tensors, temporary, {**metadata, CHECKSUM: digest(tensors)})
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a :class:`CheckpointError` that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number == errno.ENOSPC or "No space left" in str(error):
            advice = "the disk is full: free some space, and the same command goes on"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "it is not writable: change its permissions or choose another --out"
        else:
            advice = (
                "earlier checkpoints are untouched; once this is mended, the same command goes on from them"
            )
        raise CheckpointError(f"cannot write {path} ({error}): {advice}") from error
