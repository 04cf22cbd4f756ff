"""The index of a checkpoint: its files and their hashes, and whether they still have them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_distill import files
from cosmos_distill.files import inside, sha256
from cosmos_distill.train.checkpoint.errors import CheckpointError

FORMAT = 2
_OWN = re.compile(r"state\.json|[^/]+/[^/]+\.safetensors")


@dataclass(frozen=True)
class Index:
    """What a published folder says of itself."""

    step: int
    files: dict[str, str]
    """Path in the folder -> sha256."""

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises :class:`CheckpointError` if there is none, or not of this format."""
        content = read_json(folder / "index.json")
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}: format {content.get('format')!r}, this version reads {FORMAT}: "
                "go on with the version that wrote it, or choose another output folder"
            )
        for key, kind in (("step", int), ("files", dict)):
            if not isinstance(content.get(key), kind):
                raise CheckpointError(f"{folder / 'index.json'}: no {key!r} in it")
        if outside := [name for name in content["files"] if not _OWN.fullmatch(name) or not inside(name)]:
            raise CheckpointError(f"{folder / 'index.json'}: {outside[0]!r} is no file of a checkpoint")
        present = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")}
        if unknown := present - content["files"].keys():
            raise CheckpointError(f"{folder / min(unknown)}: not in index.json; remove it if it is not yours")
        return cls(content["step"], content["files"])

    def verify(self, folder: Path, part: slice = slice(None), within: str = "") -> None:
        """Compare the checksums of ``part`` of the files whose paths begin with ``within``.

        Raises:
            CheckpointError: naming the first that is damaged or missing.
        """
        for name in sorted(name for name in self.files if name.startswith(within))[part]:
            try:
                found = sha256(folder / name)
            except OSError as error:
                raise CheckpointError(f"{folder / name}: {error.strerror}") from error
            except ValueError as error:
                raise CheckpointError(str(error)) from error
            if found != self.files[name]:
                raise CheckpointError(f"{folder / name}: checksum differs, the file is damaged")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises :class:`CheckpointError` naming the file for anything else."""
    try:
        content = files.read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content
