"""The metrics that an Evaluate stage names: every candidate in one pass over the held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file

from cosmos_distill.config import Evaluate
from cosmos_distill.data.sources import shots
from cosmos_distill.eval.measure import Numbers, Readings, document, load
from cosmos_distill.files import sha256
from cosmos_distill.sampling.candidates import clip_of
from cosmos_distill.storage import publish_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.sources import Source

SCHEMA = 2
"""Of a report whose metrics the recipe names."""
REPLICAS = "replicas.safetensors"


def pieces(stage: Evaluate) -> list[tuple[int, int]]:
    """(first sample, count) of every batch of samples; where draws repeat the clips, none lies in two
    draws."""
    if stage.metrics is None:
        total = stage.clips * stage.draws
        return [(first, min(stage.batch, total - first)) for first in range(0, total, stage.batch)]
    return [
        (draw * stage.clips + first, min(stage.batch, stage.clips - first))
        for draw in range(stage.draws)
        for first in range(0, stage.clips, stage.batch)
    ]


def measured(
    stage: Evaluate,
    who: Sequence[str],
    numbers: Callable[[str, int], Numbers],
    clips: Source,
    reference: Sequence[tuple[int, int]],
    replicas: dict[str, np.ndarray],
) -> dict[str, Any]:
    """What scores.json has of metrics: ``metrics``, ``floor``, ``differences``, ``about``.

    Args:
        who: Candidates; the tokenizer's round trip of the real clips joins them as ``codec``.
        numbers: (who, first sample) -> numbers of that batch, of candidates, ``codec``, ``real`` and
            ``reference``.
        reference: Batches of further held-out clips that sets are compared with.
        replicas: Filled with the scores' replicas, for :func:`keep_replicas`.
    """
    metrics = load(stage.metrics or ())
    known: dict[str, int] = {}
    sets = {key: Readings(metrics) for key in (*who, "codec")}
    real, others = Readings(metrics), Readings(metrics, as_set=True)
    for first, count in pieces(stage):
        units = _units(clips, clip_of(stage, first), count, known)
        for key, readings in (("real", real), *sets.items()):
            readings.extend(numbers(key, first), units)
    for first, count in reference:
        others.extend(numbers("reference", first), _units(clips, first, count, known))
    found = document(metrics, sets, real, others, stage.draws, replicas)
    for name, path in (stage.networks or {}).items():
        found["about"][name]["network"] = identity(path)
    return found | {"schema": SCHEMA, "clips": stage.clips, "shots": len(known) or None}


def keep_replicas(folder: Path, replicas: Mapping[str, np.ndarray]) -> None:
    """Write the scores' replicas beside scores.json."""
    if replicas:
        publish_tensors(
            {key: torch.from_numpy(value) for key, value in replicas.items()}, folder / REPLICAS, {}
        )


def replicas(folder: Path, who: str, metric: str) -> np.ndarray | None:
    """Those of one score, fp64 [replicas]; None where it has none."""
    try:
        found: np.ndarray | None = load_file(folder / REPLICAS).get(f"{who}.{metric}")
    except FileNotFoundError:
        return None
    return found


def identity(path: Path) -> dict[str, str]:
    """Name of a network that the user gave, and the hash of its weights."""
    weights = path / "model.safetensors" if path.is_dir() else path
    return {"name": path.name} | ({"sha256": sha256(weights)} if weights.is_file() else {})


def _units(clips: Source, first: int, count: int, numbers: dict[str, int]) -> Tensor | None:
    """Number of each clip's shot, int64 [count], from a numbering that grows; None where shots are
    unknown."""
    found = shots(clips, first, count)
    if found is None:
        return None
    return torch.tensor([numbers.setdefault(shot, len(numbers)) for shot in found])
