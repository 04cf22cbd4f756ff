"""Strips of a clip's frames for the page, JPEG, remembered like its numbers."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from cosmos_distill.data.clip_stats import Frames, look
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index, cache_folder
from cosmos_distill.data.measuring import info
from cosmos_distill.data.opencv import opencv
from cosmos_distill.members import File, place, stamp
from cosmos_distill.storage import DiskError, publish

HEIGHT = 90
"""Pixels of a strip."""
FRAMES = (0, 2, 4)
"""Of the frames that were looked at, in time."""
_QUALITY = 78


class Pictures:
    """Strips by file; where there is no place to keep them they are made again."""

    def __init__(self) -> None:
        cache = cache_folder()
        self._folder = None if cache is None else cache / "strips"
        with suppress(OSError):
            if self._folder is not None:
                self._folder.mkdir(exist_ok=True)

    def keep(self, file: File, frames: Frames) -> None:
        """Remember the strip of a clip."""
        if (kept := self._place(file)) is not None:
            with suppress(DiskError):  # a disk that refuses costs time and nothing else
                publish(kept, strip(frames))

    def of(self, file: File, index: Index) -> bytes:
        """The strip of a clip; nothing where it cannot be decoded any more."""
        if (kept := self._place(file)) is not None:
            with suppress(OSError):
                found = kept.read_bytes()
                if found.startswith(b"\xff\xd8") and found.endswith(b"\xff\xd9"):
                    return found
        try:
            frames = look(file, info(file, index))
        except (DataError, OSError):
            return b""
        self.keep(file, frames)
        return strip(frames)

    def _place(self, file: File) -> Path | None:
        if self._folder is None:
            return None
        with suppress(OSError):
            name = f"{place(file)}\0{stamp(file)}\0{HEIGHT} {FRAMES} {_QUALITY}"
            return self._folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.jpg"
        return None


def strip(frames: Frames) -> bytes:
    """Frames side by side, as a JPEG."""
    cv2 = opencv()
    chosen = [frames.samples[min(number, len(frames.samples) - 1)] for number in FRAMES]
    height, width = chosen[0].shape[:2]
    # Of clips that are very wide or very high, what a strip has room for.
    size = min(3 * HEIGHT, max(HEIGHT // 4, round(width * HEIGHT / height))), HEIGHT
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in chosen]
    image = np.hstack(small)[:, :, ::-1]
    done, content = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(content) if done else b""
