"""Thresholds by which clips, and a teacher's pairs, are left out.

The numbers are those of ``cosmos-distill inspect`` (:mod:`cosmos_distill.data.clip_stats`), on whose page
people choose them; :mod:`cosmos_distill.data.keeping` applies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated

from cosmos_distill.config.numbers import Share
from cosmos_distill.ranges import Checked, Problem, Range

GreyLevels = Annotated[float, Range(0, 255)]
"""Of 255."""


@dataclass(frozen=True)
class Keep(Checked):
    """Which of a teacher's pairs are used, by how their clips look; None asks nothing."""

    min_brightness: Share | None = None
    """Mean luma, 0 black to 1 white; below it a clip is dark."""
    max_brightness: Share | None = None
    """Above it a clip is bright: overexposed, or white."""
    min_contrast: Share | None = None
    """Standard deviation of luma within frames; below it a clip is flat, as fog and single colours are."""
    max_saturated: Share | None = None
    """Share of channel values at either end of their range; above it a clip is saturated, as too much
    guidance leaves it."""
    min_motion: GreyLevels | None = None
    """Grey levels by which successive frames differ on average; below it a clip is still."""
    max_motion: GreyLevels | None = None
    """Above it a clip is restless: it flickers, or shakes."""
    max_repeated: Share | None = None
    """Share of frames that repeat the one before; above it a clip is frozen, or of another frame rate."""
    max_blur: Share | None = None
    """0 sharp to 1 blurred; above it a clip is blurred."""
    max_alike: Annotated[int, Range(1, 10**6)] | None = None
    """Clips that are kept of those that look alike, the largest ones, then the first by name; the others are
    duplicates."""

    def rules(self) -> Iterator[Problem]:
        """What is above the least is below the most."""
        for item in fields(self):
            name = item.name.removeprefix("min_")
            least, most = getattr(self, item.name), getattr(self, f"max_{name}", None)
            if name != item.name and least is not None and most is not None and least > most:
                yield item.name, f"{least} is above max_{name} {most}"

    @property
    def asks(self) -> bool:
        """Whether there is a threshold at all."""
        return self != type(self)()


@dataclass(frozen=True)
class KeepClips(Keep):
    """Which clips are used, by their files and by how they look; None asks nothing."""

    min_seconds: Annotated[float, Range(0, 1e6)] | None = None
    """Below it a clip is short."""
    max_seconds: Annotated[float, Range(0, 1e6)] | None = None
    """Above it a clip is long."""
    min_side: Annotated[int, Range(1, 2**16)] | None = None
    """Pixels of the shorter side; below it a clip is small."""
    min_fps: Annotated[float, Range(0, 1e4)] | None = None
    """Frames per second; below it a clip is slow."""
    max_bars: Share | None = None
    """Share of the picture that is black bars; above it a clip is boxed."""
    max_cuts: Annotated[int, Range(0, 10**6)] | None = None
    """Cuts among the frames that are looked at, or in all with ``data.cuts``; above it a clip is cut."""
    min_words: Annotated[int, Range(0, 10**6)] | None = None
    """Words of its caption; below it a clip is barely described."""
    max_words: Annotated[int, Range(0, 10**6)] | None = None
    """Above it a clip is described at length."""
