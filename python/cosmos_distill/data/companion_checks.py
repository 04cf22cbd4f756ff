"""What is wrong with the arrays beside clips, found out before a stage would trip over them.

A prompt's embedding is [tokens, channels], or [1, tokens, channels], of floating-point numbers; the noise
that a teacher started from has the shape of a latent and unit scale. Every number in them is finite. Headers
of all files come first: that a width is wrong is known before gigabytes are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cosmos_distill.config import Data
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.text import KEY, array_header, load_array
from cosmos_distill.members import File

Shape = tuple[int, ...]
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "float128", "float64", "float32", "float16")
"""As safetensors and NumPy write them."""


@dataclass(frozen=True)
class _Check:
    path: File
    key: str
    shape_fault: Callable[[Shape], str | None]
    std_fault: Callable[[float, float], str | None] | None = None


def faults(
    texts: Iterable[File],
    noises: Iterable[File],
    index: Index,
    data: Data,
    text_channels: int | None,
    latent_shape: Shape | None,
) -> Iterator[str]:
    """One sentence for every file that cannot be meant.

    Args:
        texts: Embeddings of prompts.
        noises: Saved noise.
        text_channels: Width of the embeddings; None: any.
        latent_shape: Of the noise; None: any.
    """
    text, noise = partial(_text_fault, text_channels), partial(_noise_fault, data, latent_shape)
    checks = [_Check(path, KEY, text) for path in texts]
    checks += [_Check(path, "noise", noise, _std_fault) for path in noises]
    title = f"{data.root}: reading embeddings and noise"
    for look in (_header_fault, _content_fault):
        found = [fault for fault in index.each(checks, partial(look, index), title) if fault]
        yield from found
        if found:
            return


def _text_fault(channels: int | None, shape: Shape) -> str | None:
    inner = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(inner) == 2 and inner[0] > 0 and channels in (None, inner[1]):
        return None
    return f"expected an embedding [tokens, {channels or 'channels'}], got {list(shape)}"


def _noise_fault(data: Data, latents: Shape | None, shape: Shape) -> str | None:
    if latents in (None, shape):
        return None
    return (
        f"noise {list(shape)}, but {data.frames} frames of {data.height}x{data.width} have latents "
        f"{list(latents or ())}: set data.frames, height and width"
    )


def _std_fault(std: float, size: float) -> str | None:
    # The second term is several standard errors of a small latent; it vanishes for a real one.
    if abs(std - 1.0) <= 0.05 + 4 / np.sqrt(size):
        return None
    return (
        f"noise of standard deviation {std:.3f}, not 1: it was saved at another scale or with an input "
        "video; generate the pair from the control alone"
    )


def _header_fault(index: Index, check: _Check) -> str | None:
    try:
        dtype, shape = index.fact(check.path, "header", partial(_header, key=check.key))
    except (DataError, OSError) as error:
        return str(error)
    if dtype not in _FLOATS:
        return f"{check.path}: {check.key} is of type {dtype}, not of floating-point numbers"
    fault = check.shape_fault(tuple(shape))
    return fault and f"{check.path}: {fault}"


def _content_fault(index: Index, check: _Check) -> str | None:
    try:
        std, size = index.fact(check.path, "content", partial(_content, key=check.key))
    except (DataError, OSError) as error:
        return str(error)
    fault = check.std_fault and check.std_fault(std, size)
    return fault and f"{check.path}: {fault}"


def _header(path: File, key: str) -> list[Any]:
    return list(array_header(path, key))


def _content(path: File, key: str) -> list[float]:
    """Standard deviation and number of elements. DataError for one that is not finite."""
    array = load_array(path, key)
    return [float(array.std(dtype=np.float64)), array.size]
