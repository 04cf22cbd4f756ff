"""The folder of a run that Python code asked for (:func:`cosmos_distill.distill`): what it is of, so that
another run does not go on in it."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from cosmos_distill import __version__
from cosmos_distill.arrays.named import metadata
from cosmos_distill.config import EDM, MethodConfig, TrigFlow
from cosmos_distill.diffusion import build_schedule
from cosmos_distill.errors import Refusal
from cosmos_distill.files import read_json
from cosmos_distill.parallel import fsdp
from cosmos_distill.run.lock import locked
from cosmos_distill.storage import DiskError, disk_errors, publish_json
from cosmos_distill.train.checkpoint.store import CHECKPOINT

RECORD = "distill.json"
_DIGEST = 64
"""Values of each tensor that tell one teacher from another."""


def described(
    student: nn.Module, teacher: nn.Module | None, method: MethodConfig, schedule: EDM | TrigFlow
) -> dict[str, Any]:
    """What makes a run another one, beside the numbers that a checkpoint holds."""
    return {
        "version": __version__,
        "schedule": build_schedule(schedule).to_dict(),
        "sampler": None if method.pretrains else vars(method.sampler),
        "student": _digest(student, values=False),
        "teacher": None if teacher is None else _digest(teacher, values=True),
    }


def _digest(network: nn.Module, *, values: bool) -> str:
    """Tells networks apart: by names, shapes and types of their tensors and, with ``values``, by some of
    what is in them, evenly spread."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        if values and tensor.numel() and not fsdp.is_sharded(network):
            flat = tensor.detach().reshape(-1)
            some = flat[:: -(-flat.numel() // _DIGEST)].double().cpu().numpy()
            found.update(some.tobytes())
    return found.hexdigest()


def record(folder: Path) -> dict[str, Any] | None:
    """What the folder says that it is of; None where it says nothing.

    Raises:
        Refusal: that cannot be read, or is something else.
    """
    try:
        found = read_json(folder / RECORD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refusal(f"{folder / RECORD} cannot be read ({error}): choose another folder") from error
    if not isinstance(found, dict) or not {"schedule", "sampler", "student", "teacher"} <= found.keys():
        raise Refusal(f"{folder / RECORD} is none of distill(): choose another folder")
    return found


def behind(folder: Path, weights: Path) -> str:
    """In words, that training went on after the student ``weights`` was written; empty where it did not."""
    step = metadata(weights).get("step")
    steps = (CHECKPOINT.fullmatch(path.name) for path in (folder / "checkpoints").glob("step_*"))
    newest = max((int(found[1]) for found in steps if found), default=0)
    if not isinstance(step, int) or newest <= step:
        return ""
    return (
        f"{weights} is the student after {step} steps, and training has gone on to step {newest} since: make "
        "the same call of distill() again to have the newest"
    )


def claim(stack: ExitStack, folder: Path, own: dict[str, Any]) -> None:
    """Hold the folder for this process until ``stack`` is left, and write down what it is of.

    Raises:
        Refusal: it cannot be made, another process holds it, or it is of another run.
    """
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except DiskError as error:
        raise Refusal(str(error)) from error
    stack.enter_context(locked(folder))
    found = record(folder)
    if found is None or not (folder / "checkpoints").is_dir():  # nothing that another run could go on from
        publish_json(folder / RECORD, own, indent=1)
        return
    own = own | {"version": found.get("version")}
    if changed := sorted(key for key in own if own[key] != found.get(key)):
        raise Refusal(
            f"{folder} belongs to a run with another {' and another '.join(changed)}: give the same again "
            "to go on, or choose another folder"
        )
