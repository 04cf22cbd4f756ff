"""Turn legacy pickles (noise, T5 embeddings, negative prompt) into safetensors, without running them.

``python -m cosmos_distill.data.convert datasets/kd/noise datasets/kd/t5_xxl negative_prompt.pkl``

A pickle names functions to call while loading; none is called here (:mod:`cosmos_distill.arrays.pickles`).
Each result is written beside its source, which stays, and never over another file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cosmos_distill.arrays import rebuild, torch_files
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import KEY, PICKLES
from cosmos_distill.files import printable
from cosmos_distill.storage import DiskError, publish

NOISE_KEY = "noise"
AV_PATH = ("pickle", "ground_truth", "embeddings", "t5_xxl")
"""Where the driving data sets nest their embedding."""
_DEEPEST = 100


def read_pickle(path: Path) -> np.ndarray:
    """The one fp32 array of a legacy file: an array, a list holding it first, or a dictionary of either.

    Raises DataError when the pickle calls anything but array constructors, is damaged, or holds no array.
    """
    try:
        array = _find_array(torch_files.read_any(path))
    except (ValueError, OSError, MemoryError) as error:
        said = str(error).removeprefix(f"{path} is not read: ").removeprefix(f"{path} ")
        raise DataError(f"{path}: not converted, {said or 'there is not enough memory'}") from error
    if array is None:
        raise DataError(
            f"{path}: holds no plain array. Segmentations and key points must be rendered to videos: "
            f"write {path.parent}/{path.stem}.mp4"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds NaN or infinity: make the file again")
    return array


def _find_array(content: Any) -> np.ndarray | None:
    for _ in range(_DEEPEST):  # a list can hold itself
        if isinstance(content, dict):
            if KEY in content:
                content = content[KEY]
                continue
            for key in AV_PATH:
                content = content.get(key) if isinstance(content, dict) else None
        elif isinstance(content, list | tuple) and content and not isinstance(content[0], int | float):
            content = content[0]
        else:
            break
    if (tensor := rebuild.tensor(content)) is not None:
        array: np.ndarray | None = tensor.float().numpy() if not tensor.is_complex() else None
    else:
        array = rebuild.array(content)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite
        return np.array(array, np.float32, order="C") if array is not None and array.ndim >= 2 else None


def convert(path: Path) -> Path:
    """Write ``<path without suffix>.safetensors`` beside the legacy file and return its path.

    The array is called ``noise`` in a folder of that name and ``t5_text_embeddings`` elsewhere. Raises
    DataError as :func:`read_pickle` does, and where another file of that name is there already; one with the
    same content, as an earlier conversion leaves it, is kept.
    """
    array = read_pickle(path)
    key = NOISE_KEY if path.parent.name == NOISE_KEY else KEY
    target, content = path.with_suffix(".safetensors"), save({key: torch.from_numpy(array)})
    if target.is_symlink() or target.exists():
        if not target.is_file() or target.read_bytes() != content:
            raise DataError(
                f"{path}: not converted, {target} is there and holds something else: move it away"
            )
        return target
    publish(target, content)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert every file given and every pickle in the folders given. 2 when one of them is refused, 1 when
    one could not be written."""
    parser = argparse.ArgumentParser(prog="python -m cosmos_distill.data.convert", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    status = 0
    for path in parser.parse_args(arguments).paths:
        try:
            files = (
                sorted(p for p in path.iterdir() if p.suffix.lower() in PICKLES) if path.is_dir() else [path]
            )
        except OSError as error:
            print(printable(f"{path}: cannot be read ({error.strerror})"), file=sys.stderr)
            status = 2
            continue
        if not files:
            print(printable(f"{path}: no {', '.join(PICKLES)} file"), file=sys.stderr)
            status = 2
        for file in files:
            try:
                print(printable(f"{file} -> {convert(file).name}"))
            except (DataError, DiskError) as error:
                print(printable(str(error)), file=sys.stderr)
                status = max(status, 2 if isinstance(error, DataError) else 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
