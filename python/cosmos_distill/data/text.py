"""Prompt embeddings: a weight-free encoder for the mini scale, and T5 embeddings read from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from cosmos_distill.arrays import companions
from cosmos_distill.arrays.named import Entry
from cosmos_distill.data.errors import DataError
from cosmos_distill.members import File
from cosmos_distill.randomness import constant

T5_TOKENS, T5_CHANNELS = 512, 1024
KEY = "t5_text_embeddings"
"""Name of the array inside a safetensors or npz embedding file."""
PICKLES = (".pickle", ".pkl", ".pt", ".pth")
CONVERTER = "python -m cosmos_distill.data.convert"


@lru_cache(maxsize=4096)
def _gaussian(name: str, channels: int) -> np.ndarray:
    return constant(name).standard_normal(channels)


class HashTextEncoder:
    """Deterministic [tokens, channels] fp32 embedding of a prompt, without weights.

    A word's vector is the sum of three fixed unit Gaussians, divided by sqrt(3): one for the word,
    one for the word with the word before it (so "row 2" and "column 2" end in different vectors, as
    they would after a real text encoder) and one for the position. Unused tokens are zero, and the
    empty prompt is all zeros, as with T5 in the official pipeline.
    """

    def __init__(self, tokens: int, channels: int) -> None:
        self.tokens, self.channels = tokens, channels

    def __call__(self, prompt: str) -> np.ndarray:
        """Words beyond ``tokens`` are an error: silently cut prompts would look alike."""
        words = prompt.split()
        if len(words) > self.tokens:
            raise DataError(
                f"the prompt {prompt!r} has {len(words)} words, more than the {self.tokens} tokens of "
                "the text encoder: shorten it"
            )
        out = np.zeros((self.tokens, self.channels), np.float32)
        for position, word in enumerate(words):
            before = words[position - 1] if position else ""
            names = f"word {word}", f"pair {before} {word}", f"position {position}"
            out[position] = sum(_gaussian(name, self.channels) for name in names) / np.sqrt(3)
        return out


def refuse_pickle(path: File) -> None:
    """Raises DataError, naming the converter, when ``path`` is a pickle: loading one can run any code."""
    if path.suffix.lower() in PICKLES:
        if isinstance(path, Path):
            advice = f"convert its folder once with `{CONVERTER} {path.parent}`"
        else:
            advice = "make the archive with .safetensors or .npz in its place"
        raise DataError(f"{path} is a pickle, which can run code when loaded: {advice}")


@contextmanager
def _named(path: File) -> Iterator[None]:
    """What is wrong with an array's file becomes a DataError that names it."""
    refuse_pickle(path)
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(str(error)) from error


def array_header(path: File, key: str) -> Entry:
    """Type and shape of what :func:`load_array` would read, from the header alone. Raises DataError."""
    with _named(path):
        return companions.header(path, key)


def load_array(path: File, key: str) -> np.ndarray:
    """The fp32 array ``key`` of a .safetensors or .npz file; a file with a single array may name it freely.

    Raises DataError for a pickle, another type, an unreadable file, a missing key or a non-finite value.
    """
    with _named(path):
        array = companions.read(path, key)
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {key} holds NaN or infinity: make the file again")
    return array


def load_embedding(path: File, tokens: int = T5_TOKENS, channels: int = T5_CHANNELS) -> np.ndarray:
    """T5 embedding of one prompt, zero-padded or cut to fp32 [tokens, channels].

    A leading axis of one (a batch of one prompt) is accepted. Raises DataError as :func:`load_array`
    does, and for a wrong number of channels.
    """
    array = load_array(path, KEY)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.shape[1] != channels:
        raise DataError(f"{path}: expected an embedding [tokens, {channels}], got {list(array.shape)}")
    out = np.zeros((tokens, channels), np.float32)
    out[: len(array)] = array[:tokens]
    return out
