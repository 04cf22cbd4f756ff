"""Forms in which the tensors of one file come, whatever network they are of: under the names of wrappers,
twice (the network and its average), and as 8-bit numbers with scales."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from cosmos_distill.arrays.lazy import Lazy, Value, made

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Parts of a name that DDP, torch.compile, activation checkpointing and FSDP put in."""
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(WRAPPERS)})\.")
NETWORK, AVERAGE = "net.", "net_ema."
_SCALES = (".weight_scale", ".scale_weight")
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
_MARKER = "scaled_fp8"
"""An empty tensor that ComfyUI puts beside scaled weights, of the type that they are in."""
_OF_ACTIVATIONS = (".input_scale", ".scale_input")


class AverageTaken(UserWarning):
    """A file holds a network and its average."""


def plain(tensors: Mapping[str, Value], path: Path, *, average: bool = True) -> dict[str, Value]:
    """The same tensors under the network's own names, once each, as numbers that mean themselves.

    Args:
        average: Of a file that holds a network (``net.``) and its average (``net_ema.``), take the average,
            and say so; else the network.

    Raises:
        ValueError: two tensors have one name without their wrappers, or a scale does not fit its tensor.
    """
    return _scaled(_one_of_two(_unwrapped(tensors, path), path, average), path)


def _unwrapped(tensors: Mapping[str, Value], path: Path) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in tensors.items():
        bare = _WRAPPED.sub("", name)
        if bare in found:
            raise ValueError(f"{path} holds {bare[:200]} twice, within and without a wrapper ({name[:200]})")
        found[bare] = value
    return found


def _one_of_two(tensors: dict[str, Value], path: Path, average: bool) -> dict[str, Value]:
    have = {prefix: any(name.startswith(prefix) for name in tensors) for prefix in (NETWORK, AVERAGE)}
    if not all(have.values()):
        return tensors
    left_out, taken = (NETWORK, AVERAGE) if average else (AVERAGE, NETWORK)
    if average:
        warnings.warn(
            f"{path} holds a network and its average: the average (net_ema) is taken",
            AverageTaken,
            stacklevel=2,
        )
    return {
        NETWORK + name.removeprefix(taken) if name.startswith(taken) else name: value
        for name, value in tensors.items()
        if not name.startswith(left_out)
    }


def _scaled(tensors: dict[str, Value], path: Path) -> dict[str, Value]:
    """8-bit weights times their scales, one per tensor or one per row, in bf16; where none has a scale, they
    are numbers as they stand. What scales activations of an 8-bit run is left out."""
    scales = {
        name[: -len(ending)] + ".weight": name
        for name in tensors
        for ending in _SCALES
        if name.endswith(ending) and name[: -len(ending)] + ".weight" in tensors
    }
    if not scales:
        eight = {name for name, value in tensors.items() if value.dtype in _EIGHT_BITS}
        if _MARKER in tensors and eight - {_MARKER}:
            raise ValueError(
                f"{path} says that its 8-bit weights are scaled ({_MARKER}), and holds no scale: the file is "
                "not whole: download it again"
            )
        return {name: value for name, value in tensors.items() if name != _MARKER}
    dropped = set(scales.values())
    found: dict[str, Value] = {}
    for name, value in tensors.items():
        if name in dropped or name.endswith(_OF_ACTIVATIONS) or name == _MARKER:
            continue
        if name in scales:
            scale = tensors[scales[name]]
            _require_fitting(value, scale, scales[name], path)
            found[name] = Lazy(value.shape, torch.bfloat16, partial(_times, value, scale))
        elif value.dtype in _EIGHT_BITS:
            raise ValueError(
                f"{path}: {name[:200]} has 8 bits and no scale, and others have one: the file is not whole: "
                "download it again"
            )
        else:
            found[name] = value
    return found


def _require_fitting(value: Value, scale: Value, name: str, path: Path) -> None:
    rows = value.shape[0] if value.shape else 1
    one = scale.shape.numel() == 1
    if not one and tuple(scale.shape) not in ((rows,), (rows, *(1,) * (len(value.shape) - 1))):
        raise ValueError(
            f"{path}: {name[:200]} is {list(scale.shape)}, neither one number nor one for each of {rows} rows"
        )


def _times(value: Value, scale: Value) -> torch.Tensor:
    weight, factor = made(value).float(), made(scale).float()
    shape = () if factor.numel() == 1 else (-1, *(1,) * (weight.ndim - 1))
    return (weight * factor.reshape(shape)).bfloat16()
