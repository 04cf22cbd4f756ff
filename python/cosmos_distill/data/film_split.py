"""Which frames of the film are for training, and which are held out for what.

====================  ==================================================================================
``train``             the rest of every shot
``eval``              the headline split: the last fifth of every long shot, so known scenes, new motion
``hard``              whole shots of scenes that training never sees
``validation``        the same two kinds, of other frames and shots: for choosing settings
====================  ==================================================================================

Between stretches of one shot lies a gap of half a second that is in none of them, and no stretch holds the
frames beside a cut. A hundred shots do not teach what an unseen scene's colours are, at any size of network:
results on ``hard`` tell how far a network is from that, not how well it was distilled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cosmos_distill.data.clips import Split, Stretch

GAP = 12
"""Frames between two stretches of one shot: half a second."""
MARGIN = 1
"""Frames at both ends of a shot that are left out, since a cut may be found one frame late."""
LONG = 96
"""Frames from which on a shot is long: a fifth of them holds a window."""
LONGEST = 160
"""Frames from which on a shot has a stretch for validation as well."""

HARD = (285, 1711, 1813, 2394, 3513, 6348, 8024, 9148, 9420, 10339, 11524, 13942)
"""First frames of the shots of ``hard``, chosen from a contact sheet: a flowered slope, a red branch (two
shots), two meadows from above, pegs, a squirrel's face, a bird on a trunk, dark leaves, a wood from above,
two eyes, and what follows the credits."""
VALIDATION = (6753, 8091, 9891, 11612)
"""The same for ``validation``: a glowering face, a fruit against the sun, a fall through a wood, a cherry
tree."""


def split_film(
    shots: Sequence[tuple[int, int]],
    span: int,
    hard: Collection[int] = HARD,
    validation: Collection[int] = VALIDATION,
) -> list[Stretch]:
    """Stretches of all splits; windows cover ``span`` frames.

    ``shots`` are (first frame, frame after the last one); ``hard`` and ``validation`` name shots by their
    first frame. A stretch that holds no window is left out.
    """
    found: list[Stretch] = []
    for number, (begin, end) in enumerate(shots):
        first, last = begin + MARGIN, end - MARGIN
        parts: list[tuple[Split, int, int]] = []
        if begin in hard:
            parts.append(("hard", first, last))
        elif begin in validation:
            parts.append(("validation", first, last))
        else:
            length = end - begin
            if length >= LONG:
                held = max(span + 1, length // 5)
                parts.append(("eval", last - held, last))
                last -= held + GAP
            if length >= LONGEST:
                held = max(span + 1, length // 10)
                parts.append(("validation", last - held, last))
                last -= held + GAP
            parts.append(("train", first, last))
        found += [
            Stretch("film", number, start, stop, split)
            for split, start, stop in reversed(parts)
            if stop - start >= span
        ]
    return found
