"""Files of named tensors: safetensors, and torch checkpoints without their pickle. Knows no network."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cosmos_distill.files import replacing

State = dict[str, torch.Tensor]


def read(path: Path) -> State:
    """Tensors of a file (.safetensors, .pt) or folder of safetensors, in the file's names.

    They are mapped: bytes are read when used, and the file must not be changed in place meanwhile.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, ambiguous, or a pickle that asks for more than tensors.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a .safetensors or .pt file, or a folder")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): copy or download it again") from error
    return _read_torch(path)


def _read_folder(path: Path) -> State:
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        try:
            files = set(json.loads(indices[0].read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{indices[0]} is no index of sharded weights ({error!r})") from error
        if outside := [f for f in files if not isinstance(f, str) or Path(f).name != f]:
            raise ValueError(f"{indices[0]} points outside its folder: {outside}")
    else:
        files = {file.name for file in path.glob("*.safetensors")}
        if len(files) != 1:
            raise ValueError(
                f"{path} holds {len(files)} .safetensors files and {len(indices)} indices: name one file"
            )
    state: State = {}
    for file in sorted(files):
        state |= read(path / file)
    return state


def _read_torch(path: Path) -> State:
    try:
        # Transformer Engine keeps its (unused) extra state in a BytesIO, a plain container.
        with torch.serialization.safe_globals([io.BytesIO]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is a pickle that asks for more than tensors, and none of it was executed. "
            "If you trust its origin, convert it to .safetensors elsewhere."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is no torch checkpoint that can be mapped ({str(error).splitlines()[0]}): "
            "download it again, or re-save an old one with a current torch."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no state dict but {type(found).__name__}")
    tensors: State = {}
    for name, value in found.items():
        if isinstance(value, io.BytesIO):
            value = (
                torch.frombuffer(bytearray(value.getvalue()), dtype=torch.uint8) if value.getvalue() else None
            )
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is not None:
            raise ValueError(f"{path}: {name} is {type(value).__name__}, not a tensor")
    return tensors


def write_safetensors(state: State, path: Path, layout: str) -> None:
    """Write from rank 0, atomically: a crash leaves the old file or the new one.

    ``layout`` says in the file's metadata whose names it uses.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        if dist.get_rank() == 0:
            _write_here(state, path, layout)
        dist.barrier()
    else:
        _write_here(state, path, layout)


def _write_here(state: State, path: Path, layout: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", "names": layout})
