"""Who is left out: thresholds of a recipe (:mod:`cosmos_distill.config.keep`) and the numbers of clips.

One function of the numbers decides, for ``inspect``, for clips and for a teacher's pairs. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cosmos_distill.config import Keep
from cosmos_distill.data import alike
from cosmos_distill.data.clip_stats import ClipStats
from cosmos_distill.data.video import ClipInfo
from cosmos_distill.data.windows import Cut


@dataclass(frozen=True)
class Known:
    """What is known of a clip: as much of it as the thresholds ask for."""

    info: ClipInfo | None = None
    stats: ClipStats | None = None
    words: int | None = None
    """Of its caption."""
    cuts: Sequence[Cut] | None = None
    """Of the whole clip; None: those of ``stats`` are all that is known."""


class Fault(NamedTuple):
    """Why a clip is left out: in a word, by which such clips are counted, and with the number."""

    word: str
    reason: str


class _Rule(NamedTuple):
    """One pair of thresholds: the ends of their names, and what a clip below or above is called."""

    name: str
    below: str
    above: str
    says: str


RULES = (
    _Rule("seconds", "short", "long", "{value:.2f} s, {than} {bound:g}"),
    _Rule("side", "small", "", "shorter side of {value} pixels, {than} {bound}"),
    _Rule("fps", "slow", "", "{value:.2f} frames per second, {than} {bound:g}"),
    _Rule("words", "barely described", "described at length", "caption of {value} words, {than} {bound}"),
    _Rule("brightness", "dark", "bright", "brightness {value:.3f}, {than} {bound:g}"),
    _Rule("contrast", "flat", "", "contrast {value:.3f}, {than} {bound:g}"),
    _Rule("saturated", "", "saturated", "{value:.3f} of its values saturated, {than} {bound:g}"),
    _Rule("bars", "", "boxed", "{value:.3f} of it black bars, {than} {bound:g}"),
    _Rule("blur", "", "blurred", "blur {value:.3f}, {than} {bound:g}"),
    _Rule("motion", "still", "restless", "motion {value:.3f}, {than} {bound:g}"),
    _Rule("repeated", "", "frozen", "{value:.3f} of its frames repeated, {than} {bound:g}"),
    _Rule("cuts", "", "cut", "{value} cuts, {than} {bound}"),
)
"""In the order in which a clip is judged: the first fault is the one it is counted under."""
_OF_FILES = ("seconds", "side", "fps", "words")
DUPLICATE = "duplicate"


def decodes(keep: Keep) -> bool:
    """Whether thresholds ask for more than a file's header and caption say."""
    asked = {name for name, value in vars(keep).items() if value is not None}
    return bool(asked - {f"{end}_{name}" for end in ("min", "max") for name in _OF_FILES})


def numbers(known: Known) -> dict[str, float | int | None]:
    """What a clip is judged by; None is not known, and no fault."""
    info, stats = known.info, known.stats
    found: dict[str, float | int | None] = {rule.name: None for rule in RULES}
    found["words"] = known.words
    if info is not None:
        found["side"] = min(info.height, info.width)
    if info is not None and not info.photo:
        found |= {"seconds": info.duration, "fps": info.rate}
    if stats is not None:
        found |= {name: getattr(stats, name) for name in vars(stats) if name in found}
        found["cuts"] = len(stats.cuts)
    if known.cuts is not None:
        found["cuts"] = len(known.cuts)
    return found


def faults(keep: Keep, clips: Mapping[str, Known]) -> dict[str, Fault]:
    """Clips that are left out, by name, in the order in which they are given, and why.

    Of clips that look alike and have no other fault, those of the most pixels are kept, and of these the
    first.
    """
    found: dict[str, Fault] = {}
    for name, known in clips.items():
        if (fault := _fault(keep, numbers(known))) is not None:
            found[name] = fault
    if keep.max_alike is not None:
        good = [name for name in clips if name not in found and clips[name].stats is not None]
        for group in groups(clips, good):
            group.sort(key=lambda name: -_pixels(clips[name]))
            for name in group[keep.max_alike :]:
                kept = ", ".join(group[: min(keep.max_alike, 3)])
                found[name] = Fault(DUPLICATE, f"{DUPLICATE}: looks like {kept}")
    return {name: found[name] for name in clips if name in found}


def _pixels(known: Known) -> int:
    return known.info.height * known.info.width if known.info is not None else 0


def groups(clips: Mapping[str, Known], names: Sequence[str]) -> list[list[str]]:
    """Which of the clips with these names look alike, two or more together."""
    hashes = [stats.hashes if (stats := clips[name].stats) is not None else () for name in names]
    return [[names[number] for number in group] for group in alike.groups(hashes)]


def _fault(keep: Keep, values: Mapping[str, float | int | None]) -> Fault | None:
    for rule in RULES:
        value = values[rule.name]
        least, most = (getattr(keep, f"{end}_{rule.name}", None) for end in ("min", "max"))
        if value is None:
            continue
        for word, bound, than, beyond in (
            (rule.below, least, "below", least is not None and value < least),
            (rule.above, most, "above", most is not None and value > most),
        ):
            if beyond:
                return Fault(word, f"{word}: {rule.says.format(value=value, than=than, bound=bound)}")
    return None


def counted(words: Iterable[str]) -> dict[str, int]:
    """How many were left out for what, most first."""
    return dict(Counter(words).most_common())


def said(counts: Mapping[str, int], what: str = "clip") -> str:
    """``12 clips: 7 dark, 5 still``; nothing for none."""
    total = sum(counts.values())
    if not total:
        return ""
    parts = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{total} {what}{'s' if total != 1 else ''}: {parts}"
