"""Folders in transformers' format: configuration, weights and tokenizer, without anything being run.

transformers' own loader takes code, other files and other hosts from what a folder says. This one reads the
files itself and takes from transformers the network and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cosmos_distill.arrays import named, rebuild, torch_files
from cosmos_distill.files import inside, read_json

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def weights(folder: Path) -> list[Path]:
    """The weights' files: one, or the shards of an index; safetensors are preferred.

    Raises:
        FileNotFoundError: there are none, or the index names one that is not there.
        ValueError: the index is damaged or leads out of the folder.
    """
    for whole, index in zip(_WHOLE, _INDICES, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            said = read_json(folder / index)
            names = sorted(set(said.get("weight_map", {}).values())) if isinstance(said, dict) else []
            if not names or not all(isinstance(name, str) and inside(name) for name in names):
                raise ValueError(f"{folder / index} is damaged: it names no files of this folder")
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise FileNotFoundError(f"{folder} lacks {missing[0]}, which {index} names: download it, too")
            return [folder / name for name in names]
    raise FileNotFoundError(
        f"{folder} has no weights ({', '.join(_WHOLE)}, or one of these in parts with its index)"
    )


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder, mapped.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged, or a pickle that asks for more than tensors.
    """
    found: dict[str, torch.Tensor] = {}
    for path in weights(folder):
        if path.suffix == ".safetensors":
            found |= named.load(path)
            continue
        said = torch_files.read(path)
        if not isinstance(said, dict):
            raise ValueError(f"{path} holds no state dict but {type(said).__name__}")
        tensors = {str(name): rebuild.tensor(value) for name, value in said.items()}
        found |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return found


def load(
    make: Callable[[], Any],
    found: dict[str, torch.Tensor],
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """The network that ``make`` builds with the tensors of ``found``, frozen; others are left out.

    It is built without memory and takes one tensor after the other, each in ``dtype`` on ``device``, so that
    no second copy of a large encoder is ever held.

    Raises:
        ValueError: a tensor is missing or of another size.
    """
    try:
        with torch.device("meta"):
            model = make()
    except Exception as error:  # a configuration can say anything
        raise ValueError(f"{folder}/config.json describes no such network ({error})") from error
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            what = (
                "is missing"
                if name not in found
                else f"is {list(found[name].shape)}, not {list(value.shape)}"
            )
            raise ValueError(f"{folder}: {name} {what}: configuration and weights do not fit")
    taken = {
        name: found[name].to(device, dtype if found[name].is_floating_point() else None) for name in wanted
    }
    model.load_state_dict(taken, assign=True)
    model.tie_weights()
    _fill_buffers(model, device)
    return model.eval().requires_grad_(False)


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Buffers that no file holds (frequencies of rotary positions) are computed by their module's class."""
    for name, module in model.named_modules():
        held = [key for key, value in module.named_buffers(recurse=False) if value.is_meta]
        if not held:
            continue
        if not hasattr(module, "config"):
            raise ValueError(f"{type(module).__name__} {name} has buffers that are in no file")
        fresh = type(module)(config=module.config)
        for key in held:
            setattr(module, key, getattr(fresh, key).to(device))


def configuration(kind: Any, folder: Path) -> Any:
    """config.json as transformers' class ``kind`` understands it.

    Raises:
        ValueError: it is none.
    """
    said = read_json(folder / "config.json")
    if not isinstance(said, dict):
        raise ValueError(f"{folder}/config.json is damaged: it holds no object")
    said.pop("auto_map", None)  # names of code in the folder
    try:
        return kind.from_dict(said)
    except Exception as error:
        raise ValueError(f"{folder}/config.json is no {kind.__name__} ({error})") from error


def tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of the folder: its files only, and no code of it.

    Raises:
        ValueError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"{folder}: its tokenizer cannot be read ({said[0] if said else error!r})"
        ) from error
