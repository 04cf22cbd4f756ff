"""What ``--out`` may name: a new folder, an empty one, or one that a run has been writing. Torch-free."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cosmos_distill.files import read_json
from cosmos_distill.run.manifest import MANIFEST, RECORD

_LOGS = {".log", ".out", ".err", ".txt"}
_NAMED = 3
_TOP = {"recipe.json", "report.json", "report.html", "run.lock"}
_FILES = {".json", ".jsonl", ".html", ".lock", ".png", ".safetensors"}
"""Suffixes of what a run writes."""
_FOLDERS = ("checkpoints", "grids", "pairs", "samples", "shards")
"""Of stages. Without TensorBoard's a training goes on."""


def problems(out: Path, stages: Iterator[str] | tuple[str, ...] = ()) -> Iterator[str]:
    """Why a run cannot write ``out``, each with what to do about it.

    Args:
        stages: names of the stages to run; a folder that holds a run of others only is another run's.
    """
    try:
        reason = blocked(out) or _unwritable(out)
        if not reason and out.is_dir():
            reason = _foreign(out, set(stages))
            if not reason:
                yield from _misplaced(out, stages)
    except (OSError, ValueError) as error:  # a name that is too long, for example
        reason = f"cannot be used ({error})"
    if reason:
        yield f"--out {out} {reason}: choose another folder with --out."


def blocked(path: Path) -> str:
    """What stands in the way of a folder of that name; empty where nothing does."""
    if path.parts[:1] and path.parts[0].startswith("~"):
        return "begins with a ~ that the shell did not expand, and would be a folder of that name here"
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if existing.is_symlink() and not existing.exists():
        return f"leads nowhere ({existing} is a link to {existing.readlink()}, which does not exist)"
    return "" if existing.is_dir() else f"cannot be made ({existing} is a file)"


def _unwritable(out: Path) -> str:
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    try:
        # A probe, not os.access: root may write anywhere by permission, yet not on a read-only or full disk.
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".probe") as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"cannot be written ({error})"
    return ""


def _misplaced(out: Path, stages: Iterable[str]) -> Iterator[str]:
    """Folders where this run has files, and files where it has folders: both would end it when it writes
    there, perhaps after days."""
    inside = [(path, True) for name in stages for path in (out / name).rglob("*")]
    for path, deeper in [*((path, False) for path in out.iterdir()), *inside]:
        if path.suffix in _FILES and path.is_dir() and (deeper or path.name in _TOP):
            yield f"{path} is a folder now: remove it, and the same command makes the file again."
    for path in (out / part for name in stages for part in (name, *(f"{name}/{sub}" for sub in _FOLDERS))):
        if os.path.lexists(path) and not path.is_dir():
            yield f"{path} is a file now, or leads nowhere: remove it, and the same command makes the folder."


def _foreign(out: Path, stages: set[str]) -> str:
    """Nothing for an empty folder or a run's; logs that a shell or scheduler writes there do not count."""
    made = {path.parent.name for path in out.glob(f"*/{MANIFEST}")}
    if made and stages and not made & stages:
        return f"holds another run, of {', '.join(sorted(made))}"
    if made or (out / "run.lock").is_file() or last_recipe(out) is not None:
        return ""
    others = sorted(
        path.name
        for path in out.iterdir()
        if not path.name.startswith(".")
        and path.name != "lost+found"
        and not (path.suffix in _LOGS and path.is_file())
    )
    if not others:
        return ""
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"is no run folder and holds {', '.join(others[:_NAMED])}{more}"


def leftovers(folder: Path) -> bool:
    """Whether a stage's folder holds anything beside its manifest, its record of clips and what a kill left
    half-written."""
    try:
        return any(p.name not in (MANIFEST, RECORD) and not p.name.startswith(".") for p in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def goes_on_from_files(folder: Path) -> bool:
    """Whether a stage under way has left what it would go on from: pairs, a checkpoint, drawn clips, or
    shards, even the beginning of one."""
    made = any(not path.name.startswith(".") for path in folder.rglob("*.safetensors"))
    return made or any(path.suffix in (".tar", ".part") for path in (folder / "shards").glob("*"))


def last_recipe(out: Path) -> Any:
    """The resolved recipe of the last command in ``out``, as JSON has it; None where none is legible."""
    try:
        return read_json(out / "recipe.json")["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
