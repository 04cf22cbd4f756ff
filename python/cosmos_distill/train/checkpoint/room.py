"""Whether a disk has room for the checkpoints of a stage, asked before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from cosmos_distill.config import Trainer
from cosmos_distill.errors import Refusal


def refuse_full(folder: Path, each: int, trainer: Trainer) -> None:
    """Look whether the checkpoints that a stage keeps, and one that is being written, have room beside what
    is on the disk. Those in ``folder`` already give theirs back.

    Args:
        folder: of the checkpoints; it need not be there yet.
        each: bytes of one.

    Raises:
        Refusal: they have none.
    """
    saves = -(-trainer.max_steps // trainer.save_every) if trainer.save_every else 1
    kept = min(saves, trainer.keep_checkpoints + 1)
    if trainer.keep_every:
        kept = min(saves, kept + trainer.max_steps // trainer.keep_every)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if kept * each > free + there:
        raise Refusal(
            f"{folder}: {kept} checkpoints of {each / 2**30:,.2f} GiB have no room: {free / 2**30:,.2f} GiB "
            "are free. Free some, choose another --out, or keep fewer (--trainer.keep-checkpoints, "
            "--trainer.keep-every)"
        )
