"""Cuts of whole clips, which windows then do not cross: ``data.cuts``.

Found once for a file, by all of its frames, and remembered (:mod:`~cosmos_distill.data.index`). A single
thread decodes, so that a cut does not depend on what FFmpeg conceals of damage. Torch-free, as far as no
network is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cosmos_distill.config.data import Detector
from cosmos_distill.data import packages
from cosmos_distill.data.clip_stats import WHOLE, black_bars, look, reduced_size
from cosmos_distill.data.clips import ClipInfo, cuts_of, jump
from cosmos_distill.data.container import opened, shown_frames
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.windows import Cut
from cosmos_distill.members import File


class _Frame(NamedTuple):
    image: np.ndarray
    """Reduced, RGB uint8 [h, w, 3]."""
    seconds: float
    """When it is shown, after the clip's first frame."""


def cuts_in(file: File, info: ClipInfo, detector: Detector, index: Index) -> tuple[Cut, ...]:
    """The cuts of a clip, in order.

    Raises:
        DataError: not one frame of it can be decoded.
        OSError: nothing is there.
    """

    def find(file: File) -> list[Cut]:
        if info.frames == 1:
            return []
        times: list[float] = []
        if detector == "transnetv2":
            between = _by_network(file, times)
        else:
            between = [(number, number) for number in _by_difference(file, info, times)]
        times.append(times[-1] + 1 / info.rate)  # a transition up to the end has no shot behind it
        return [Cut(end, begin, times[end - 1], times[begin]) for end, begin in between]

    return tuple(Cut(*cut) for cut in index.fact(file, f"cuts by {detector}", find))


def _by_difference(file: File, info: ClipInfo, times: list[float]) -> list[int]:
    """Cuts by how much successive frames differ, inside of black bars: of a clip of up to ``WHOLE`` frames
    those that its :class:`~cosmos_distill.data.clip_stats.ClipStats` have."""
    size = reduced_size(info.height, info.width)
    frames = _noted(_decoded(file, size), times)
    if info.frames <= WHOLE:
        whole = np.stack([frame.image for frame in frames])
        inside: Sequence[np.ndarray] | Iterator[np.ndarray] = list(black_bars([whole]).crop(whole))
    else:
        bars = black_bars(look(file, info).stretches)
        inside = (bars.crop(frame.image[None])[0] for frame in frames)
    return cuts_of([jump(before, after) for before, after in pairwise(inside)])


def ready(detector: Detector | None) -> None:
    """Look whether cuts can be found so. Raises DataError that says what is missing."""
    if detector == "transnetv2":
        packages.path("transnetv2")


@lru_cache(maxsize=1)
def _network() -> Any:
    import torch

    from cosmos_distill.vision.transnet import WEIGHTS, Boundaries

    return Boundaries(torch.load(packages.path(WEIGHTS), map_location="cpu", weights_only=True))


def _by_network(file: File, times: list[float]) -> list[tuple[int, int]]:
    """(frame behind a shot, first frame of the next) by TransNet V2, on the CPU: windows of a hundred frames
    of which the middle half is taken, as published; a frame is the last of a shot, or of a transition, where
    that is likelier than not."""
    import torch

    from cosmos_distill.vision.transnet import EDGE, HEIGHT, WIDTH, WINDOW

    likely: list[float] = []
    step, last = WINDOW - 2 * EDGE, None
    held: list[np.ndarray] = []

    def more(image: np.ndarray) -> None:
        held.append(image)
        if len(held) == WINDOW:
            with torch.inference_mode():
                likely.extend(_network()(torch.from_numpy(np.stack(held)))[EDGE:-EDGE].tolist())
            del held[:step]

    for frame in _noted(_decoded(file, (HEIGHT, WIDTH)), times):
        last = frame.image
        for image in [last] * (EDGE + 1 if len(times) == 1 else 1):
            more(image)
    assert last is not None
    while len(likely) < len(times):
        more(last)
    found: list[tuple[int, int]] = []
    for number in np.flatnonzero(np.array(likely[: len(times)]) > 0.5).tolist():
        if found and found[-1][1] == number:  # a transition goes on
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number + 1, number + 1))
    return found


def _noted(frames: Iterator[_Frame], times: list[float]) -> Iterator[_Frame]:
    for frame in frames:
        times.append(frame.seconds)
        yield frame


def _decoded(file: File, size: tuple[int, int]) -> Iterator[_Frame]:
    """Every frame that can be decoded, up to the first damage that ends the file, as (height, width) of
    ``size``. Raises DataError where there is none."""
    found = 0
    try:
        with opened(file) as (container, stream, display, clock):
            stream.codec_context.thread_count = 1
            start = 0.0
            for number, frame in enumerate(shown_frames(container, stream)):
                now = float(clock.seconds_of(frame.pts, number))
                start = start if number else now
                image = display.small(frame, *size)
                yield _Frame(image, now - start)
                found += 1
    except DataError:
        if not found:
            raise
    if not found:
        raise DataError(f"{file}: no frame of it can be decoded")
