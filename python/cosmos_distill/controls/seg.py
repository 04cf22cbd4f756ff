"""Segmentation, a colour for every segment: by a network that the user gives, or from files.

Masks are drawn as the published pipeline draws them: up to a hundred, each in a random colour, the smaller
over the larger. Training leaves a random number of them out.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosmos_distill.controls import Control, Map, Modelled, Settings, Uniform
from cosmos_distill.randomness import generator
from cosmos_distill.vision import segments
from cosmos_distill.vision.segments import Segments

MOST = 100
"""Masks of a clip that are drawn."""


class Drawing(NamedTuple):
    """How the segments of a clip are drawn."""

    seed: int
    """Of the colours, and of which segments are drawn."""
    share: float | None = None
    """A number in [0, 1) that says how many of up to :data:`MOST` segments are drawn, from none to all; None:
    all."""


def draw(uniform: Uniform) -> Drawing:
    """How the segments of a clip are drawn in training, from two numbers in [0, 1)."""
    return Drawing(int(uniform[0] * 2**53), float(uniform[1]))


def painted(found: Segments, drawing: Drawing) -> np.ndarray:
    """Segments as a video, RGB uint8 [F, H, W, 3], that is black where none is."""
    random = generator(drawing.seed, "segments", 0)
    chosen: Sequence[int] = range(min(MOST, len(found)))
    if drawing.share is not None:
        count = int(drawing.share * (len(chosen) + 1))
        chosen = [int(i) for i in random.permutation(len(found))[:count]]
    colours = [_colour(*random.random(3)) for _ in chosen]
    sizes = found.sizes
    video = np.zeros((*found.shape, 3), np.uint8)
    for n in sorted(range(len(chosen)), key=lambda n: -sizes[chosen[n]]):
        for frame, mask in found.masks[chosen[n]].items():
            mask.paint(video[frame], colours[n])
    return video


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Any hue, neither grey nor dark, from three numbers in [0, 1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.1 + 0.9 * saturation, 0.2 + 0.8 * value)
    return (np.array([red, green, blue]) * 255).astype(np.uint8)


def _load(folder: Path) -> Map:
    find = segments.load(folder)

    def seg(frames: np.ndarray, settings: Settings) -> np.ndarray:
        return painted(find(frames), settings)

    return seg


CONTROL = Control(
    modelled=Modelled(
        wants=segments.WHAT,
        check=segments.check,
        load=_load,
        draw=draw,
        preset=lambda strength, factor: Drawing(0),
    ),
    nearest=True,
)
