"""Which numbers decide the trajectory of a run, and whether a checkpoint belongs to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cosmos_distill.config import MethodConfig, Optim, Trainer
from cosmos_distill.errors import UserError
from cosmos_distill.files import to_json
from cosmos_distill.ranges import effects

_log = logging.getLogger(__name__)


class ResumeError(UserError, ValueError):
    """The checkpoint on disk comes from a run with other hyper-parameters."""


def fingerprint(method: MethodConfig, optims: Iterable[Optim], trainer: Trainer, seed: int) -> dict[str, Any]:
    """Every number that changes the sequence of weights, flat, by dotted name, as the fields say
    (:func:`cosmos_distill.ranges.effects`).

    ``micro_batch`` and ``activation_checkpointing`` are not part of it (the result is the same within
    rounding, and a run that does not fit in memory must be able to go on with a smaller one); ``max_steps``
    is only where a cosine schedule stretches with it.
    """
    compared = ("result", "length") if any(optim.cosine for optim in optims) else ("result",)
    named = effects(type(trainer), vars(trainer))
    flat = {"seed": seed, "method.name": type(method).__name__}
    flat |= {f"trainer.{name}": getattr(trainer, name) for name, kind in named.items() if kind in compared}
    flat |= _flatten("method", asdict(method))
    result: dict[str, Any] = json.loads(to_json(flat, default=str))
    return result


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run.

    A field that only one side knows comes from another version of the code and is named in a warning.

    Raises:
        ResumeError: naming every field that differs, with both values.
    """
    shared = saved.keys() & current.keys()
    changed = [
        f"{key} was {saved[key]!r} and is now {current[key]!r}"
        for key in sorted(shared)
        if saved[key] != current[key]
    ]
    if changed:
        raise ResumeError(
            f"the checkpoint was made with other hyper-parameters: {'; '.join(changed)}. "
            "Set them back to go on, or choose another output folder to start anew"
        )
    if unknown := sorted(saved.keys() ^ current.keys()):
        _log.warning("checkpoint of another code version; not compared: %s", ", ".join(unknown))


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flatten(f"{prefix}.{name}", part).items()}
    return {prefix: value}
