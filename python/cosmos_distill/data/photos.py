"""Photos as clips of one frame. Torch-free.

The suffix says which files of a folder are meant, as it does for videos; the bytes decide what one is. A
photo has no rate: networks are told :data:`RATE`, which changes the position of no first frame.
"""

from __future__ import annotations

import numpy as np

from cosmos_distill.config import Data
from cosmos_distill.data.images import read_image
from cosmos_distill.data.opening import open_regular
from cosmos_distill.members import File

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""In lower case."""
RATE = 24.0
"""Frames per second that are said of a photo."""
UNASKED = "is a photo, and clips of one frame are not asked for (a shape of one frame in data.buckets)"


def named_photo(file: File) -> bool:
    """Whether a file is called like a photo."""
    return file.suffix.lower() in PHOTO_SUFFIXES


def is_photo(file: File) -> bool:
    """Whether a file is called like a photo and begins as one. DataError when it cannot be opened."""
    if not named_photo(file):
        return False
    with open_regular(file) as stream:
        begin = stream.read(12) or b""
    return begin.startswith((b"\xff\xd8\xff", b"\x89PNG")) or (begin[:4], begin[8:]) == (b"RIFF", b"WEBP")


def asked(data: Data) -> bool:
    """Whether photos can be trained on: one of the shapes has one frame."""
    return any(shape.frames == 1 for shape in data.shapes())


def frame(file: File) -> np.ndarray:
    """The picture, RGB uint8 [H, W, 3]. DataError, naming the file, when it cannot be shown."""
    return read_image(file)
