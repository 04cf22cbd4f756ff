"""Files of named tensors: safetensors, and torch checkpoints without their pickle. Knows no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from cosmos_distill.arrays import distcp, named, rebuild, torch_files
from cosmos_distill.arrays.lazy import Lazy, Value, made
from cosmos_distill.arrays.named import State
from cosmos_distill.arrays.places import DISTRIBUTED, weights_in
from cosmos_distill.files import absent, mistaken, regular
from cosmos_distill.models.common import forms
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.storage import replacing

_KEYS = ("model", "state_dict")
"""Under which trainers keep a network beside their own state."""


def read(path: Path, *, verify: bool = True, average: bool = True) -> State:
    """:func:`values`, all tensors made."""
    return {name: made(value) for name, value in values(path, verify=verify, average=average).items()}


def values(path: Path, *, verify: bool = True, average: bool = True) -> dict[str, Value]:
    """Tensors of a file (.safetensors, .pt), a folder of safetensors or of a distributed checkpoint, or of a
    folder that has one of these (:func:`~cosmos_distill.arrays.places.weights_in`), in the file's names
    without those of wrappers (:mod:`~cosmos_distill.models.common.forms`).

    They are mapped: bytes are read when used, and the file must not be changed in place meanwhile. What has
    to be put together or scaled is made when it is needed. Only a file that carries a checksum of its weights
    is read at once, to be compared with it, unless ``verify`` is False.

    Args:
        average: Of a file that holds a network and its average, take the average; else the network.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, ambiguous, no file at all, or a pickle that asks for more than tensors.
    """
    return forms.plain(_read(weights_in(path), verify), path, average=average)


def _read(path: Path, verify: bool) -> Mapping[str, Value]:
    if path.is_dir():
        if (path / DISTRIBUTED).is_file():
            return _nested(distcp.read(path))
        state: State = {}
        for file in named.shards(path):
            state |= named.load(file, verify=verify)
        return state
    try:
        regular(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"no weights: {absent(path)}: download the file again") from None
        raise FileNotFoundError(
            f"no weights at {path}: give a .safetensors or .pt file, or a folder"
        ) from None
    if path.name.endswith(".safetensors.index.json"):
        raise ValueError(f"{path} is an index of shards: give its folder")
    if path.suffix == ".safetensors":
        return named.load(path, verify=verify)
    return _read_torch(path)


def _nested(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """The network's tensors of a distributed checkpoint, which joins the keys of nested dictionaries by dots;
    beside the network there may be the optimiser and more."""
    for key in _KEYS:
        inside = {n.removeprefix(f"{key}."): v for n, v in tensors.items() if n.startswith(f"{key}.")}
        tensors = inside or tensors
    return tensors


def _read_torch(path: Path) -> State:
    try:
        found = torch_files.read(path)
    except ValueError as error:
        if (instead := mistaken(path)) is not None:
            raise ValueError(f"{path} {instead}") from error
        raise ValueError(
            f"{error}, and none of it was executed: download it again, re-save an old one with a current "
            "torch, or, if it asks for more than tensors and you trust its origin, convert it to safetensors."
        ) from error
    for key in _KEYS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no state dict but {type(found).__name__}")
    tensors: State = {}
    for name, value in found.items():
        try:
            tensor, extra = rebuild.tensor(value), rebuild.bytes_io(value)
        except ValueError as error:
            raise ValueError(f"{path}: {name[:200]}: {error}") from error
        if extra:  # Transformer Engine keeps its (unused) extra state in a BytesIO
            tensor = torch.frombuffer(bytearray(extra), dtype=torch.uint8)
        if tensor is not None:
            tensors[name] = tensor
        elif value is not None and extra is None:
            raise ValueError(f"{path}: {name[:200]} is {type(value).__name__}, not a tensor")
    return tensors


def write_safetensors(state: State, path: Path, layout: str) -> None:
    """Write from rank 0, atomically: a crash leaves the old file or the new one. All ranks call this.

    ``layout`` says in the file's metadata whose names it uses.
    """
    on_rank_zero(lambda: _write_here(state, path, layout))


def _write_here(state: State, path: Path, layout: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        checksum = json.dumps({named.CHECKSUM: named.digest(state)})
        save_file(state, temporary, {"format": "pt", "names": layout, named.METADATA: checksum})
