"""Checkpoints that survive a kill at any moment: safetensors and JSON, checksummed, published by one rename.

    <folder>/step_000000500/
        network_student.safetensors  optimizer_student.safetensors  ...   one file per named group of tensors
        state.json        plain numbers and strings
        index.json        {"format": 1, "step": 500, "files": {name: sha256}}, written last

A folder that is being written is called ``.tmp-...``; whatever carries that name at the next start is the
remains of a killed process and is removed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_distill.files import replacing, sha256, sync_folder

FORMAT = 1
_NAME = re.compile(r"step_(\d{9,})")
_TEMPORARY = ".tmp-"
_METADATA = "cosmos_distill"
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class Checkpoint:
    """One checked folder on disk.

    Attributes:
        step: number of optimiser steps done.
        state: contents of state.json.
    """

    def __init__(self, path: Path) -> None:
        """Read and verify ``path``; raises :class:`CheckpointError` naming the file that is wrong."""
        self.path = path
        index = self._json("index.json")
        if index.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format {index.get('format')!r}, this version reads {FORMAT}")
        for key, kind in (("step", int), ("files", dict)):
            if not isinstance(index.get(key), kind):
                raise CheckpointError(f"{path / 'index.json'}: no {key!r} in it")
        self.step: int = index["step"]
        for name, digest in index["files"].items():
            try:
                found = sha256(path / name)
            except OSError as error:
                raise CheckpointError(f"{path / name}: {error.strerror}") from error
            if found != digest:
                raise CheckpointError(f"{path / name}: checksum differs, the file is damaged")
        self.state: dict[str, Any] = self._json("state.json")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The group of tensors saved as ``name``, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / name}: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path / name}: not a JSON object")
        return content


class CheckpointStore:
    """The checkpoints of one stage.

    Args:
        folder: made if missing; remains of killed saves in it are removed.
        keep: number of checkpoints left on disk.

    Raises:
        CheckpointError: if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = max(1, keep)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint; None if there never was one. Damaged ones are named in a warning.

        Raises:
            CheckpointError: if there are checkpoints and none is valid.
        """
        problems = []
        for _, path in sorted(self._folders(), reverse=True):
            try:
                return Checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                _log.warning("checkpoint not usable, trying the previous one: %s", error)
        if problems:
            raise CheckpointError(
                f"no usable checkpoint in {self.folder}: {'; '.join(problems)}. "
                "Restore one of them, or delete this folder to start the stage from its beginning"
            )
        return None

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write and publish ``step_<step>``, then remove all but the newest ``keep``.

        Args:
            step: optimiser steps done.
            groups: name -> tensors, one safetensors file each.
            state: JSON-serialisable.

        Raises:
            CheckpointError: on a full disk or an unwritable folder; earlier checkpoints are untouched.
        """
        final = self.folder / f"step_{step:09d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            with disk_errors(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                for name, tensors in groups.items():
                    write_tensors(tensors, temporary / f"{name}.safetensors")
                _write_json(state, temporary / "state.json")
                files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
                _write_json({"format": FORMAT, "step": step, "files": files}, temporary / "index.json")
                sync_folder(temporary)
                if final.exists():  # one that was rejected at the last resume
                    self._remove(final)
                temporary.rename(final)
                sync_folder(self.folder)
                self._prune(step)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def _prune(self, step: int) -> None:
        """Keep the newest ``keep`` up to ``step``; a folder beyond it was rejected at the last resume."""
        folders = sorted(self._folders(), reverse=True)
        past = [path for number, path in folders if number <= step]
        for path in [p for number, p in folders if number > step] + past[self.keep :]:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill during the removal must not leave half a checkpoint under a real name.
        doomed = path.with_name(f"{_TEMPORARY}removed-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _folders(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(match[1]), path) for match, path in matches if match]


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a safetensors file, bytes decided by the arguments alone, and wait until it is on disk.

    The metadata is one JSON string under one key, since the library writes several keys in random order.
    """
    header = None if metadata is None else {_METADATA: json.dumps(metadata, sort_keys=True)}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, header)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a safetensors file and rename it into place: ``path`` is always old or new, never half.

    Raises:
        CheckpointError: on a full disk or an unwritable folder; an older file at ``path`` is untouched.
    """
    with disk_errors(path), replacing(path) as temporary:
        write_tensors(tensors, temporary, metadata)
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file written by :func:`publish_tensors`; empty for any other safetensors file."""
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return content


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


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
