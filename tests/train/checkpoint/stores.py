"""Checkpoints of small tensors, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cosmos_distill.train.checkpoint import Checkpoint, Piece, Store, whole

SHARD = "network/shard-00001.safetensors"


def wholes(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    return {name: whole(value) for name, value in tensors.items()}


def fill(store: Store, *steps: int) -> None:
    for step in steps:
        tensors = {"w": torch.full((64,), float(step))}
        store.save(step, {"network": wholes(tensors)}, {"step": step, "pi": 0.1 + step})
        store.wait()


def load(checkpoint: Checkpoint, group: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name: torch.zeros_like(value) for name, value in like.items()}
    checkpoint.load(group, wholes(tensors))
    return tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(store: Store) -> Checkpoint:
    found = store.newest()
    assert found is not None
    return found
