"""Options of ``cosmos-distill inspect``. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cosmos_distill.config import KeepClips
from cosmos_distill.config.data import Detector
from cosmos_distill.ranges import Checked

LENIENT = KeepClips(
    min_brightness=0.04,
    max_brightness=0.96,
    min_contrast=0.02,
    max_saturated=0.5,
    min_motion=0.1,
    max_repeated=0.5,
    max_blur=0.75,
    max_alike=1,
    max_bars=0.35,
)
"""What hardly anybody wants to train on: the thresholds that a page begins with."""


@dataclass(frozen=True)
class InspectOptions(Checked):
    """Show what a folder of clips holds, on one page that needs no other file.

    DATA is a folder that a recipe's --data takes, or any folder of videos, with folders in it, or WebDataset
    shards with videos in them. Of each clip a few frames are decoded, once: what was found is remembered, and
    an interrupted command goes on.
    """

    out: Path = Path("inspect.html")
    """The page."""
    json: Path | None = None
    """The numbers of every clip, as JSON, too."""
    cuts: Detector | None = None
    """Find the cuts of whole clips, as recipes do with --data.cuts; None: those among the frames that are
    looked at."""
    keep: KeepClips = field(default_factory=lambda: LENIENT)
    """Thresholds to try: clips beyond them are marked, and recipes leave them out with --data.keep.*; None
    asks nothing."""
    traceback: bool = False
    """Show the Python traceback of an error."""
