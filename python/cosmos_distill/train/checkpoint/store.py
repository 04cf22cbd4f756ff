"""Checkpoints that survive a kill at any moment: safetensors and JSON, checksummed, published by one rename.

    <folder>/step_000000500/
        network_student/  optimizer_student/  ...   one folder per named group of tensors
            shard-00001.safetensors  ...            what each rank wrote of it
        state.json        plain numbers and strings
        index.json        {"format": 2, "step": 500, "files": {path in the folder: sha256}}, written last

A folder that is being written is called ``.tmp-...``; whatever carries that name at the next start is the
remains of a killed process and is removed. All ranks must see the same folder. It can be read under another
layout, and on another number of ranks, than it was written under.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cosmos_distill.files import sha256, to_json
from cosmos_distill.parallel import groups
from cosmos_distill.storage import DiskError, disk_errors, sync_folder
from cosmos_distill.train.checkpoint import shards
from cosmos_distill.train.checkpoint.agreement import Ranks
from cosmos_distill.train.checkpoint.errors import CheckpointError
from cosmos_distill.train.checkpoint.index import FORMAT, Index, read_json
from cosmos_distill.train.checkpoint.pieces import Piece
from cosmos_distill.train.checkpoint.shards import Shards
from cosmos_distill.train.checkpoint.staging import Staging

CHECKPOINT = re.compile(r"step_(\d{9,})")
_TEMPORARY = ".tmp-"
_PATIENCE = 20.0
"""Seconds that a rank which fails waits for a checkpoint under way: the launch is to end within a minute."""
_log = logging.getLogger(__name__)


class Checkpoint:
    """One checked folder on disk.

    Attributes:
        step: number of optimiser steps done.
        state: contents of state.json.
    """

    def __init__(self, path: Path, step: int, state: dict[str, Any], ranks: Ranks) -> None:
        self.path = path
        self.step = step
        self.state = state
        self._ranks = ranks
        self._opened: dict[str, Shards] = {}

    def names(self, group: str) -> set[str]:
        """The tensors saved as ``group``. Collective."""
        return set(self._shards(group).tensors)

    def load(self, group: str, pieces: Mapping[str, Piece], *, partial: bool = False) -> None:
        """Fill this rank's ``pieces`` of tensors saved as ``group``, in place. Collective.

        Raises:
            CheckpointError: on every rank, if a tensor is missing or has another shape or type on one; or,
                unless ``partial``, if no rank asks for one that was saved.
        """
        opened = self._shards(group)

        def load() -> set[str]:
            opened.load(pieces)
            return set(pieces)

        asked = set().union(*self._ranks.all_gather(load))
        if not partial and (left := sorted(opened.tensors.keys() - asked)):
            raise CheckpointError(f"{opened.folder} has {', '.join(left[:3])}, which nothing here asks for")

    def _shards(self, group: str) -> Shards:
        if group not in self._opened:
            self._ranks.all_gather(lambda: self._opened.update({group: Shards(self.path / group)}))
        return self._opened[group]


class Store:
    """The checkpoints of one stage. Every method is collective, the constructor too.

    A context manager: it leaves the block when the last save is published.

    Args:
        folder: made if missing; remains of killed saves in it are removed.
        keep: number of checkpoints left on disk.
        keep_every: checkpoints whose step is a multiple of it stay beside them; None or 0: no others.

    Attributes:
        ranks: all of them, in the group of the thread that writes.

    Raises:
        DiskError: if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None) -> None:
        self.folder = folder
        self.keep = max(1, keep)
        self.keep_every = keep_every
        self.ranks = Ranks(groups.background_group())
        self._staging = Staging(self.ranks)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.ranks.on_rank_zero(self._begin)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint; None if there never was one. Damaged ones are named in a warning.

        Every file is read by one rank.

        Raises:
            CheckpointError: if there are checkpoints and none is valid.
        """
        problems = []
        for _, path in self.ranks.on_rank_zero(lambda: sorted(self._folders(), reverse=True)):
            try:
                return self._checked(path)
            except CheckpointError as error:
                problems.append(str(error))
                if self.ranks.rank == 0:
                    _log.warning("checkpoint not usable, trying the previous one: %s", error)
        if problems:
            raise CheckpointError(
                f"no usable checkpoint in {self.folder}: {'; '.join(problems)}. "
                "Restore one of them, or delete this folder to start the stage from its beginning"
            )
        return None

    def save(self, step: int, groups: Mapping[str, Mapping[str, Piece]], numbers: Mapping[str, Any]) -> None:
        """Copy everything to the CPU and return; a thread writes and publishes ``step_<step>``, then removes
        old checkpoints. Waits for the save before it.

        Args:
            step: optimiser steps done.
            groups: name -> what this rank holds of the group's tensors; the same groups on all ranks.
            numbers: JSON-serialisable; rank 0's are kept.

        Raises:
            DiskError: of the save before this one, like :meth:`wait`.
            CheckpointError: the ranks hold no whole state.
        """
        self.wait()
        document = to_json(numbers, indent=1)
        staged = self._staging.copy(groups)
        self._thread = threading.Thread(
            target=self._write, args=(step, staged, document), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the last save is published, at most ``seconds``.

        Raises:
            DiskError: on a full disk or an unwritable folder; earlier checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is published."""
        return self.folder / f"step_{step:09d}"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # who interrupts twice does not want to wait
            try:
                # Other ranks learn of the failure only when this one has left.
                self.wait(None if self.ranks.size == 1 else _PATIENCE)
            except Exception as other:
                _log.warning("%s", other)

    def _begin(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def _checked(self, path: Path) -> Checkpoint:
        ranks = self.ranks
        index = ranks.on_rank_zero(lambda: Index.read(path))
        ranks.all_gather(lambda: index.verify(path, slice(ranks.rank, None, ranks.size)))
        return Checkpoint(path, index.step, ranks.on_rank_zero(lambda: read_json(path / "state.json")), ranks)

    def _write(self, step: int, staged: Mapping[str, Mapping[str, Piece]], document: str) -> None:
        final = self.path(step)
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.ranks.on_rank_zero(lambda: self._make(temporary, staged))
            files: dict[str, str] = {}
            for group, pieces in staged.items():
                digests = shards.save(temporary / group, pieces, self.ranks.group)
                files |= {f"{group}/{name}": digest for name, digest in digests.items()}
            self.ranks.on_rank_zero(lambda: self._publish(step, temporary, final, files, document))
        except BaseException as error:
            self._error = error
            if not isinstance(error, CheckpointError | DiskError):  # such as the loss of a rank
                self._error = DiskError(
                    f"{final} was not written ({error}): earlier checkpoints are untouched, and the same "
                    "command goes on from them"
                )
                self._error.__cause__ = error
            if self.ranks.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)

    def _make(self, temporary: Path, names: Mapping[str, Any]) -> None:
        with disk_errors(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            for name in names:
                (temporary / name).mkdir(parents=True)

    def _publish(self, step: int, temporary: Path, final: Path, files: dict[str, str], document: str) -> None:
        with disk_errors(final):
            _write_text(document, temporary / "state.json")
            files |= {"state.json": sha256(temporary / "state.json")}
            index = {"format": FORMAT, "step": step, "files": files}
            _write_text(to_json(index, indent=1), temporary / "index.json")
            for folder in (*filter(Path.is_dir, temporary.iterdir()), temporary):
                sync_folder(folder)
            if final.exists():  # one that was rejected at the last resume
                self._remove(final)
            temporary.rename(final)
            sync_folder(self.folder)
            self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the newest ``keep`` up to ``step`` and every ``keep_every``-th; a folder beyond ``step`` was
        rejected at the last resume."""
        found = sorted(self._folders(), reverse=True)
        old = [folder for folder in found if folder[0] <= step][self.keep :]
        kept = self.keep_every
        doomed = [path for number, path in old if not kept or number % kept]
        for path in [path for number, path in found if number > step] + doomed:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill during the removal must not leave half a checkpoint under a real name.
        doomed = path.with_name(f"{_TEMPORARY}removed-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _folders(self) -> list[tuple[int, Path]]:
        matches = ((CHECKPOINT.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(match[1]), path) for match, path in matches if match]


def _write_text(text: str, path: Path) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
