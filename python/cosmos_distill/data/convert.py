"""Turn legacy pickles (noise, T5 embeddings, negative prompt) into safetensors, without running them.

``python -m cosmos_distill.data.convert datasets/kd/noise datasets/kd/t5_xxl negative_prompt.pkl``

A pickle names functions to call while loading; this reader admits only those that rebuild NumPy arrays
and torch tensors, and refuses every other. Each result is written beside its source, which stays.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cosmos_distill.data.errors import DataError
from cosmos_distill.data.files import publish
from cosmos_distill.data.text import KEY, PICKLES

NOISE_KEY = "noise"
AV_PATH = ("pickle", "ground_truth", "embeddings", "t5_xxl")
"""Where the driving data sets nest their embedding."""


def _tensor_from_bytes(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    multiarray = sys.modules[np.ndarray.__reduce__(np.zeros(0))[0].__module__]
    numeric = sys.modules[f"{multiarray.__package__}.numeric"]
    admitted: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        # torch's own version of this calls the unrestricted torch.load.
        ("torch.storage", "_load_from_bytes"): _tensor_from_bytes,
    }
    for package in ("numpy.core", "numpy._core"):  # before and after NumPy 2
        for name in ("_reconstruct", "scalar"):
            admitted[f"{package}.multiarray", name] = getattr(multiarray, name)
        admitted[f"{package}.numeric", "_frombuffer"] = numeric._frombuffer
    return admitted


class _ArrayUnpickler(pickle.Unpickler):
    admitted = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no array needs") from None


def read_pickle(path: Path) -> np.ndarray:
    """The one fp32 array of a legacy file: an array, a list holding it first, or a dictionary of either.

    Raises DataError when the pickle calls anything but array constructors, is damaged, or holds no array.
    """
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb") as file:
                content = _ArrayUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise DataError(f"{path}: not converted, {error}") from error
    array = _find_array(content)
    if array is None:
        raise DataError(
            f"{path}: holds no plain array. Segmentations and key points must be rendered to videos: "
            f"write {path.parent}/{path.stem}.mp4"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds NaN or infinity: make the file again")
    return array


def _find_array(content: Any) -> np.ndarray | None:
    if isinstance(content, dict):
        if KEY in content:
            return _find_array(content[KEY])
        nested: Any = content
        for key in AV_PATH:
            nested = nested.get(key) if isinstance(nested, dict) else None
        return None if nested is None else _find_array(nested)
    if isinstance(content, list | tuple) and content and not isinstance(content[0], int | float):
        return _find_array(content[0])
    if isinstance(content, torch.Tensor):
        content = content.float().numpy()
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu" and content.ndim >= 2:
        return np.ascontiguousarray(content, np.float32)
    return None


def convert(path: Path) -> Path:
    """Write ``<path without suffix>.safetensors`` beside the legacy file and return its path.

    The array is called ``noise`` in a folder of that name and ``t5_text_embeddings`` elsewhere.
    """
    array = read_pickle(path)
    key = NOISE_KEY if path.parent.name == NOISE_KEY else KEY
    target = path.with_suffix(".safetensors")
    publish(target, save({key: torch.from_numpy(array)}))
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert every file given and every pickle in the folders given; 1 when one could not be."""
    parser = argparse.ArgumentParser(prog="python -m cosmos_distill.data.convert", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    failures = 0
    for path in parser.parse_args(arguments).paths:
        files = sorted(p for p in path.iterdir() if p.suffix in PICKLES) if path.is_dir() else [path]
        if not files:
            print(f"{path}: no {', '.join(PICKLES)} file", file=sys.stderr)
            failures += 1
        for file in files:
            try:
                print(f"{file} -> {convert(file).name}")
            except (DataError, OSError) as error:
                print(error, file=sys.stderr)
                failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
