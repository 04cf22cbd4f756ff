"""One network of a checkpoint as one safetensors file, made by one process on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cosmos_distill.storage import publish_tensors
from cosmos_distill.train.checkpoint.errors import CheckpointError
from cosmos_distill.train.checkpoint.index import Index, read_json
from cosmos_distill.train.checkpoint.pieces import whole
from cosmos_distill.train.checkpoint.shards import Shards
from cosmos_distill.train.checkpoint.store import Store

Weights = Literal["auto", "ema", "network"]
_NEAR = ("", "checkpoints/", "*/checkpoints/")
"""Where the checkpoints lie of a folder of them, of a stage and of a run; nobody's whole disk is searched."""


def consolidate(
    checkpoint: Path,
    out: Path,
    *,
    role: str = "student",
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the ``role`` of a checkpoint, saved under any layout, to ``out``. Needs no GPU and no other rank.

    Args:
        checkpoint: a folder ``step_...`` of a training stage.
        out: a safetensors file; appears whole or not at all.
        role: which trained network.
        weights: its own, or their average in its types; "auto": the average where there is one.
        dtype: of the weights in the file; None: the network's. Averages are fp32 until then.

    Returns:
        ``out``.

    Raises:
        CheckpointError: the folder is no checkpoint or is damaged, or has no such network or average.
        DiskError: ``out`` cannot be written.
    """
    if not (checkpoint / "index.json").is_file():
        inside = sorted(file for at in _NEAR for file in checkpoint.glob(f"{at}step_*/index.json"))
        hint = f", for example {inside[-1].parent}" if inside else ""
        raise CheckpointError(f"{checkpoint} is no checkpoint: give one of its folders step_...{hint}")
    index = Index.read(checkpoint)
    groups = {name.partition("/")[0] for name in index.files if "/" in name}
    network, average = f"network_{role}", f"ema_{role}"
    if network not in groups:
        known = ", ".join(sorted(g.removeprefix("network_") for g in groups if g.startswith("network_")))
        raise CheckpointError(f"{checkpoint} has no network {role!r}: it holds {known}")
    if weights == "ema" and average not in groups:
        raise CheckpointError(f"{checkpoint} keeps no average of {role!r}: take weights 'network'")
    averaged = average in groups and weights != "network"
    for name in ("state.json", f"{network}/", *([f"{average}/"] if averaged else [])):
        index.verify(checkpoint, within=name)
    tensors = _read(checkpoint / network, checkpoint / average if averaged else None, dtype)
    fingerprint = read_json(checkpoint / "state.json").get("fingerprint")
    if not isinstance(fingerprint, dict) or not isinstance(fingerprint.get("method.name"), str):
        raise CheckpointError(f"{checkpoint / 'state.json'} does not say which method it is of")
    method, kind = fingerprint["method.name"], "ema" if averaged else role
    metadata = {"step": index.step, "method": method, "weights": kind}
    return publish_tensors(tensors, out, metadata)


def publish(store: Store, step: int, out: Path) -> Path:
    """Rank 0 consolidates the student of the checkpoint of ``step`` while the others wait. Collective.

    Raises:
        DiskError: on every rank, of the last save.
        CheckpointError: on every rank, like :func:`consolidate`.
    """
    store.wait()
    return store.ranks.on_rank_zero(lambda: consolidate(store.path(step), out))


def _read(network: Path, average: Path | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The network's tensors, with the averages in place of its weights."""
    own = Shards(network)
    tensors = {name: torch.empty(shape, dtype=kept) for name, (shape, kept) in own.tensors.items()}
    averages = None if average is None else Shards(average)
    averaged = {} if averages is None else averages.tensors
    for name, (shape, _) in averaged.items():
        if name not in tensors or shape != tuple(tensors[name].shape):
            raise CheckpointError(f"{average}: {name} {list(shape)} is the average of nothing in {network}")
    own.load({name: whole(value) for name, value in tensors.items() if name not in averaged})
    for name, (shape, kept) in averaged.items():
        value = torch.empty(shape, dtype=kept)  # one at a time: they are wider than the network's
        assert averages is not None
        averages.load({name: whole(value)})
        tensors[name] = value.to(dtype or tensors[name].dtype)
    return {name: value.to(_stored(value, dtype)) for name, value in tensors.items()}


def _stored(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and value.is_floating_point() else value.dtype
