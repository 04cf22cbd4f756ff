"""The page of a folder of clips: which numbers, pictures and lists go where in ``page.html.jinja``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_distill import pages
from cosmos_distill.config import KeepClips
from cosmos_distill.config.controls import shortest
from cosmos_distill.data import keeping
from cosmos_distill.data.keeping import Fault
from cosmos_distill.files import printable
from cosmos_distill.inspection.looking import Looked

MADE_BY = "cosmos-distill inspect"
"""By which a page is known to be one of ours."""
TEMPLATE = Path(__file__).parent / "page.html.jinja"
SCRIPT = Path(__file__).parent / "page.js"
BINS = 40
ENDS, MARKED, GROUPS, IN_GROUP, SHEET, ROWS = 3, 8, 12, 6, 60, 5000
"""Clips with pictures: at either end of a number, of one fault, groups of alike ones and clips of each, of
the contact sheet; and rows of the table."""

# Number -> title, unit, what clips with little of it are called, and with much.
NUMBERS = {
    "seconds": ("Length", "s", "shortest", "longest"),
    "side": ("Shorter side", "pixels", "smallest", "largest"),
    "fps": ("Frame rate", "frames/s", "slowest", "fastest"),
    "brightness": ("Brightness", "0 black, 1 white", "darkest", "brightest"),
    "contrast": ("Contrast", "standard deviation of luma", "flattest", "strongest"),
    "saturated": ("Saturated", "share of values at an end", "least", "most"),
    "motion": ("Motion", "grey levels a frame", "stillest", "liveliest"),
    "repeated": ("Repeated frames", "share", "least", "most"),
    "blur": ("Blur", "0 sharp, 1 blurred", "sharpest", "most blurred"),
    "bars": ("Black bars", "share of the picture", "least", "most"),
    "cuts": ("Cuts", "among the frames looked at", "fewest", "most"),
    "words": ("Words of the caption", "", "fewest", "most"),
}


def html(
    looked: Looked,
    faults: Mapping[str, Fault],
    keep: KeepClips,
    strip: Callable[[str], bytes],
    *,
    seconds: float,
    version: str,
) -> str:
    """The page.

    Args:
        faults: of clips that the thresholds leave out, by name.
        strip: the JPEG of a clip's frames, by its name; empty: there is none.
        seconds: that looking took.
    """
    maker = _Maker(looked, faults, keep, strip)
    names = list(looked.known)
    return pages.render(
        TEMPLATE,
        script=SCRIPT.read_text(encoding="utf-8"),
        made_by=MADE_BY,
        title=printable(str(looked.root)),
        cards=maker.cards(),
        remarks=[printable(remark) for remark in looked.remarks],
        left_out=keeping.said(keeping.counted(fault.word for fault in faults.values())),
        options=options(keep, "--data.keep."),
        tried=options(keep, "--keep."),
        plots=[plot for name in NUMBERS if (plot := maker.plot(name)) is not None],
        sizes=maker.sizes(),
        marked=maker.marked(),
        groups=maker.groups(),
        broken=[(printable(name), printable(why)) for name, why in looked.broken.items()],
        damaged=[
            (printable(name), printable(known.stats.damage))
            for name, known in looked.known.items()
            if known.stats is not None and known.stats.damage
        ],
        sheet=[maker.clip(name) for name in _spread(names, SHEET)],
        columns=[(name, NUMBERS[name][0]) for name in NUMBERS if maker.values[name]],
        rows=[maker.row(name) for name in names[:ROWS]],
        beyond=max(0, len(names) - ROWS),
        clips=len(names),
        made=f"cosmos-distill {version}, {pages.seconds(seconds)} of looking",
    )


def options(keep: KeepClips, prefix: str) -> str:
    """Thresholds as options of a command line."""
    said = {name: value for name, value in vars(keep).items() if value is not None}
    return " ".join(f"{prefix}{name.replace('_', '-')} {shortest(value)}" for name, value in said.items())


def shown(value: float | None) -> str:
    """A number as far as it matters to eyes."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.4g}"


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of all, evenly spread."""
    if len(names) <= count:
        return list(names)
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


class _Maker:
    """What of a folder is shown how."""

    def __init__(
        self, looked: Looked, faults: Mapping[str, Fault], keep: KeepClips, strip: Callable[[str], bytes]
    ) -> None:
        self._looked, self._faults, self._keep, self._strip = looked, faults, keep, strip
        self._numbers = {name: keeping.numbers(known) for name, known in looked.known.items()}
        self.values = {
            number: {
                name: float(v) for name, found in self._numbers.items() if (v := found[number]) is not None
            }
            for number in NUMBERS
        }
        self._pictures: dict[str, str] = {}

    def cards(self) -> list[dict[str, str]]:
        known, size = self._looked.known, sum(self._looked.bytes.values())
        length = sum(self.values["seconds"].values())
        cards = {
            "clips": f"{len(known):,}",
            "in all": pages.seconds(length),
            "on disk": _bytes(size),
            "beyond the thresholds": f"{len(self._faults):,}",
            "cannot be used": f"{len(self._looked.broken):,}",
        }
        return [{"value": value, "text": text} for text, value in cards.items()]

    def clip(self, name: str, *numbers: str) -> dict[str, Any]:
        """A clip with its picture and a few of its numbers."""
        if name not in self._pictures:
            content = self._strip(name)
            self._pictures[name] = pages.data_url(content, "jpeg") if content else ""
        found = self._numbers[name]
        said = [shown(found[number]) for number in numbers]
        fault = self._faults.get(name)
        return {
            "name": printable(name),
            "picture": self._pictures[name],
            "says": ", ".join(said),
            "fault": fault.word if fault else "",
            "reason": printable(fault.reason) if fault else "",
        }

    def plot(self, number: str) -> dict[str, Any] | None:
        """Distribution of one number, with the clips at its ends; None where no clip has it."""
        found = self.values[number]
        if not found:
            return None
        title, unit, low_word, high_word = NUMBERS[number]
        ranked = sorted(found, key=lambda name: (found[name], name))
        values = [found[name] for name in ranked]
        least, most = self._ends(values)
        counts = pages.histogram(values, BINS, least, most)
        top = max(counts)
        bounds = [getattr(self._keep, f"{end}_{number}", None) for end in ("min", "max")]
        room = (most - least) or 1.0
        lines = [100 * (b - least) / room for b in bounds if b is not None and least <= b <= most]
        different = values[0] != values[-1]
        return {
            "title": title,
            "unit": unit,
            "bars": [
                {
                    "x": 100 * i / BINS,
                    "height": 40 * (c / top) ** 0.5,
                    "count": c,
                    "from": shown(least + room * i / BINS),
                }
                for i, c in enumerate(counts)
                if c
            ],
            "step": 100 / BINS,
            "lines": lines,
            "least": shown(least),
            "most": shown(most),
            "over": sum(value > most for value in values),
            "median": shown(values[len(values) // 2]),
            "clips": len(values),
            "ends": [
                {"word": low_word, "clips": [self.clip(n, number) for n in ranked[:ENDS]]},
                {"word": high_word, "clips": [self.clip(n, number) for n in ranked[::-1][:ENDS]]},
            ]
            if different
            else [],
        }

    @staticmethod
    def _ends(values: Sequence[float]) -> tuple[float, float]:
        """What the axis shows: all, but for a long tail of a hundredth."""
        least, most = values[0], values[-1]
        usual = values[min(len(values) - 1, int(0.99 * len(values)))]
        if len(values) >= 100 and most - least > 3 * (usual - least) > 0:
            most = usual
        return least, most

    def sizes(self) -> list[dict[str, Any]]:
        """How many clips have which size and rate, most first."""
        counts = Counter(
            (info.width, info.height, "photo" if info.photo else f"{round(info.rate, 2):g}")
            for known in self._looked.known.values()
            if (info := known.info) is not None
        )
        rows: list[dict[str, Any]] = [
            {"size": f"{width} × {height}", "fps": rate, "clips": count}
            for (width, height, rate), count in counts.most_common(12)
        ]
        rest = sum(counts.values()) - sum(row["clips"] for row in rows)
        return rows + ([{"size": "others", "fps": "", "clips": rest}] if rest else [])

    def marked(self) -> list[dict[str, Any]]:
        """Clips beyond the thresholds by what is wrong; duplicates have a place of their own."""
        words = keeping.counted([f.word for f in self._faults.values() if f.word != keeping.DUPLICATE])
        by_word = {word: [n for n, f in self._faults.items() if f.word == word] for word in words}
        return [
            {
                "word": word,
                "count": len(names),
                "clips": [self.clip(name) for name in names[:MARKED]],
            }
            for word, names in by_word.items()
        ]

    def groups(self) -> dict[str, Any]:
        """Clips that look alike."""
        found = self._looked.alike
        return {
            "count": len(found),
            "clips": sum(map(len, found)),
            "shown": [
                {"count": len(group), "clips": [self.clip(name) for name in group[:IN_GROUP]]}
                for group in sorted(found, key=len, reverse=True)[:GROUPS]
            ],
        }

    def row(self, name: str) -> dict[str, Any]:
        """A clip's line in the table of all."""
        fault, found = self._faults.get(name), self._numbers[name]
        return {
            "name": printable(name),
            "numbers": [
                {"value": found[number], "shown": shown(found[number])}
                for number in NUMBERS
                if self.values[number]
            ],
            "fault": fault.word if fault else "",
            "reason": printable(fault.reason) if fault else "",
        }


def _bytes(size: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
