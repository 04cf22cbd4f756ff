"""What belongs to clips, wherever it lies: what a folder and shards say of themselves in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from cosmos_distill.data.captions import Caption, Told
from cosmos_distill.members import File

ARRAYS = (".safetensors", ".npz")
"""Suffixes of companions that are arrays; the first is taken where both are there."""


class Unusable(Exception):
    """Why one clip is skipped."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Companions(Protocol):
    """What belongs to clips."""

    controls: tuple[str, ...]
    """The controls whose videos are read."""

    def text(self, name: str) -> tuple[File | None, Caption | None]:
        """The embedding of the prompt of the clip ``name``, or else its caption."""

    def noise(self, name: str) -> File | None:
        """The noise that it was drawn from."""

    def control_video(self, name: str, control: str) -> File:
        """One of its controls."""


class Found(NamedTuple):
    """What there is before any of it was looked at.

    Attributes:
        place: where the videos lie.
        videos: by the names of their clips, in order.
        skipped: why, by the name of what is left over.
        companions: what belongs to them; each raises :class:`Unusable` where something is missing.
        held_out: names of the clips that somebody has held out for evaluation; None: nobody.
        captions: where the captions of the clips with some names are known.
    """

    place: str
    videos: Mapping[str, File]
    skipped: dict[str, str]
    companions: Companions
    held_out: frozenset[str] | None
    captions: Callable[[Sequence[str]], Told]
