"""The numbers of clips on disk, remembered by their files' size and times (:mod:`cosmos_distill.data.index`),
and which clips a recipe's thresholds leave out. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

from cosmos_distill.config import KeepClips
from cosmos_distill.config.data import Detector
from cosmos_distill.data import keeping
from cosmos_distill.data.captions import Told, Unusable
from cosmos_distill.data.clip_stats import ClipStats, Frames, look
from cosmos_distill.data.clips import ClipInfo, probe
from cosmos_distill.data.cuts import cuts_in
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.keeping import Fault, Known
from cosmos_distill.members import File

DAMAGED = "damaged"


def info(file: File, index: Index) -> ClipInfo:
    """What a clip's file holds. Raises DataError or OSError where it cannot be used."""
    return ClipInfo(*index.fact(file, "clip", lambda file: astuple(probe(file))))


def stats(file: File, index: Index, also: Callable[[Frames], None] = lambda frames: None) -> ClipStats:
    """How a clip looks.

    Args:
        also: called with the frames where they had to be decoded.

    Raises:
        DataError: not one frame can be shown.
        OSError: nothing is there.
    """

    def find(file: File) -> dict[str, object]:
        frames = look(file, info(file, index))
        also(frames)
        return frames.stats().plain()

    return ClipStats.of_plain(index.fact(file, "stats", find))


def damaged(error: Exception) -> Fault:
    """Of a clip of which not one frame can be decoded."""
    return Fault(DAMAGED, f"{DAMAGED}: {error}")


def words(captions: Told, name: str) -> int:
    """Words of a clip's caption, 0 where it has none. Raises DataError for one that cannot be meant."""
    try:
        return len(captions.of(name).text.split())
    except Unusable:
        return 0


def left_out(
    keep: KeepClips,
    clips: Mapping[str, tuple[File, ClipInfo]],
    captioned: Callable[[Sequence[str]], Told],
    index: Index,
    title: str,
    detector: Detector | None = None,
) -> dict[str, Fault]:
    """Which of the clips of a place thresholds leave out, by name, and why: a function of the files.

    No more is looked at than the thresholds ask for: to measure brightness, for one, frames are decoded the
    first time. A clip of which not one frame can be decoded is left out as damaged.

    Args:
        captioned: where the captions of the clips with some names are known; called where words count.
        title: of what is done, for messages while it takes long.
        detector: finds the cuts that are counted, in all frames; None: they are those among the frames that
            are looked at.

    Raises:
        DataError: a caption cannot be meant.
    """
    if not keep.asks:
        return {}
    captions = None
    if keep.min_words is not None or keep.max_words is not None:
        captions = captioned(list(clips))

    def known(item: tuple[str, tuple[File, ClipInfo]]) -> Known | Fault:
        name, (file, info) = item
        try:
            found = stats(file, index) if keeping.decodes(keep) else None
            cuts = None
            if detector is not None and keep.max_cuts is not None:
                cuts = cuts_in(file, info, detector, index)
        except (DataError, OSError) as error:
            return damaged(error)
        return Known(info, found, None if captions is None else words(captions, name), cuts)

    results = index.each(clips.items(), known, title)
    measured = dict(zip(clips, results, strict=True))
    broken = {name: one for name, one in measured.items() if isinstance(one, Fault)}
    others = {name: one for name, one in measured.items() if isinstance(one, Known)}
    faults = broken | keeping.faults(keep, others)
    return {name: faults[name] for name in clips if name in faults}
