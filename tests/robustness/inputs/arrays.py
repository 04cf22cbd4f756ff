"""Prompt embeddings given to ``sample``."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.inputs import Input
from tests.robustness.inputs.media import embedding, video
from tests.robustness.inputs.students import sample
from tests.robustness.inputs.videos import drawn


def prompt(name: str, make: Callable[[Path], object]) -> Callable[[Path], Any]:
    """Sampling with an embedding of the user's."""

    def prepare(folder: Path) -> Any:
        video(folder / "a.mp4")
        make(folder / name)
        return sample("--video", "a.mp4", "--prompt-embedding", name)

    return prepare


def _npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _array(shape: tuple[int, ...], dtype: str = "float32") -> Callable[[Path], Any]:
    return lambda path: embedding(path, np.ones(shape, dtype))


def _value(value: float) -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        array = np.ones((5, 64), np.float32)
        array[2, 3] = value
        embedding(path, array)

    return make


def _promised(path: Path) -> None:
    """An array whose header promises a terabyte."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (2**34, 16)}
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("t5_text_embeddings.npy", stream.getvalue() + bytes(64))


def _pickled(path: Path) -> None:
    np.savez(path, t5_text_embeddings=np.array([{"a": 1}], dtype=object))


GOOD = np.ones((5, 64), np.float32)
INPUTS = {
    "missing": Input(prompt("a.npz", lambda p: None), ("a.npz",), quick=True),
    "a folder": Input(prompt("a.npz", Path.mkdir), ("a.npz",), quick=True),
    "empty": Input(prompt("a.safetensors", Path.touch), ("a.safetensors",), quick=True),
    "text": Input(prompt("a.safetensors", lambda p: p.write_text("x" * 99)), ("a.safetensors",), quick=True),
    "unknown suffix": Input(prompt("a.txt", lambda p: p.write_text("x")), ("a.txt",), quick=True),
    "a pickle": Input(prompt("a.npz", _pickled), ("a.npz",), quick=True),
    "a promised terabyte": Input(prompt("a.npz", _promised), ("a.npz",), quick=True),
    "another name": Input(prompt("a.npz", _npz(one=GOOD, two=GOOD)), ("a.npz",), quick=True),
    "another width": Input(prompt("a.safetensors", _array((5, 63))), ("a.safetensors",), quick=True),
    "another rank": Input(prompt("a.safetensors", _array((64,))), ("a.safetensors",), quick=True),
    "no token": Input(prompt("a.safetensors", _array((0, 64))), ("a.safetensors",), right=drawn),
    "too many tokens": Input(prompt("a.safetensors", _array((99, 64))), ("a.safetensors",), right=drawn),
    "whole numbers": Input(
        prompt("a.safetensors", _array((5, 64), "int64")), ("a.safetensors",), right=drawn
    ),
    "complex numbers": Input(prompt("a.npz", _npz(t5_text_embeddings=GOOD * 1j)), ("a.npz",), quick=True),
    "NaN": Input(prompt("a.safetensors", _value(np.nan)), ("a.safetensors",), quick=True),
    "infinity": Input(prompt("a.safetensors", _value(np.inf)), ("a.safetensors",), quick=True),
    "half precision": Input(prompt("a.safetensors", _array((5, 64), "float16")), right=drawn),
}
