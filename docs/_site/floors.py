"""The drawing and the table of docs/architecture.md: which part of the package may import which.

Both are made of the arrows that tests/test_architecture.py holds the sources to.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from docs._site.api import PACKAGE, summary
from tests.test_architecture import ARROWS

WIDTH, BOX, HEIGHT, GAP, FLOOR = 960, 104, 34, 14, 84


def arrows() -> dict[str, set[str]]:
    """Part -> parts that it may import; what may import any has all that exist, but others of its kind."""
    parts = {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and not path.stem.startswith("_")
    }
    free = parts - set(ARROWS)
    found = {part: {name for name in ARROWS.get(part, set()) if name in parts} for part in parts}
    return found | dict.fromkeys(free, parts - free)


def floors(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Parts by floor from the top; whatever a part imports lies on a floor below."""
    height: dict[str, int] = {}

    def of(part: str) -> int:
        if part not in height:
            height[part] = 1 + max((of(other) for other in edges[part] if other != part), default=-1)
        return height[part]

    top = max(map(of, edges), default=0)
    return [sorted(part for part in edges if of(part) == level) for level in range(top, -1, -1)]


def reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that others imply."""

    def reach(part: str) -> set[str]:
        direct = edges[part] - {part}
        return direct.union(*map(reach, direct))

    return {
        part: {o for o in to if not any(o in reach(p) for p in to if p not in (o, part))} - {part}
        for part, to in edges.items()
    }


def svg(edges: Mapping[str, set[str]] | None = None) -> str:
    """The drawing, in the colours of the page."""
    edges = arrows() if edges is None else edges
    rows, drawn = floors(edges), reduced(edges)
    at: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        # Under what points at it. Parts of a floor are spread, by turns a little to either side.
        above = {part: [at[other][0] for other in at if part in drawn[other]] for part in row}
        row = sorted(row, key=lambda part: sum(above[part]) / len(above[part]) if above[part] else WIDTH / 2)
        step = WIDTH / len(row)
        shift = min(step - BOX, BOX) * (0.45 if level % 2 else -0.45)
        left = (step - BOX) / 2 + shift
        at |= {part: (left + i * step, GAP + level * FLOOR) for i, part in enumerate(row)}
    height = GAP * 2 + FLOOR * (len(rows) - 1) + HEIGHT
    lines, boxes = [], []
    for part, to in sorted(drawn.items()):
        x, y = at[part]
        for other in sorted(to):
            u, v = at[other]
            begin, end = (x + BOX / 2, y + HEIGHT), (u + BOX / 2, v)
            middle = (begin[1] + end[1]) / 2
            curve = f"M{begin[0]:.0f} {begin[1]:.0f}C{begin[0]:.0f} {middle:.0f} {end[0]:.0f} {middle:.0f}"
            lines.append(f'<path d="{curve} {end[0]:.0f} {end[1] - 4:.0f}" marker-end="url(#tip)"/>')
    for part, (x, y) in sorted(at.items()):
        boxes.append(
            f'<a href="reference/api/{part}.html"><title>{escape(summary(part))}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="4"/>'
            f'<text x="{x + BOX / 2:.0f}" y="{y + HEIGHT / 2 + 5:.0f}">{part}</text></a>'
        )
    return (
        f'<div class="floors"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Parts of the package by floor"><defs><marker id="tip" viewBox="0 0 6 6" '
        'refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L6 3L0 6z"/></marker></defs>'
        f'<g class="arrows">{"".join(lines)}</g><g class="parts">{"".join(boxes)}</g></svg></div>'
    )


def table() -> str:
    """Every part, what it is, and what it may import."""
    lines = ["| part | what it is | may import |", "|---|---|---|"]
    for row in floors(arrows()):
        for part in row:
            to = ", ".join(sorted(ARROWS[part])) or "nothing of ours" if part in ARROWS else "everything"
            lines.append(f"| [`{part}`](reference/api/{part}.md) | {summary(part)} | {to} |")
    return "\n".join(lines)
