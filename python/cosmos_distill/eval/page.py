"""The report of a run as one HTML file for people: what goes into which cell of ``report.html.jinja``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_distill import pages
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.eval.missing import ratio, shown
from cosmos_distill.eval.report import UNKNOWN, metrics_of, reasons_of

TEMPLATE = Path(__file__).parent / "report.html.jinja"
_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_OLD_FLOOR = {"intervals": "interval", "draws": "draws"}
_CAUTION = {
    "canny_f1": "A blurry mean scores well on Canny-F1 and blur-SSIM: read them together with the distance.",
    "motion": "Motion is the energy of frame differences over that of the real clips: near 0 a clip stands "
    "still, far above 1 it flickers.",
}


@dataclass(frozen=True)
class Cell:
    """A value with an interval or a remark in small print, and what a tooltip says of either."""

    value: str
    title: str = ""
    small: str = ""
    small_title: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    cells: Sequence[Cell]
    key: str = ""
    """By which the style sheet knows it."""


def html(
    report: dict[str, Any],
    *,
    title: str,
    curves: str,
    pictures: Sequence[tuple[str, Path]],
    recipe: str,
    left_out: Sequence[str] = (),
) -> str:
    """A page that needs no other file.

    Args:
        report: The content of report.json.
        curves: An ``<svg>`` of the losses.
        pictures: Caption and PNG file, in order.
        recipe: The resolved recipe as text.
        left_out: What thresholds left out of each stage, in words.
    """
    names = metrics_of(report)
    rows = [_row(report, names, who) for who in report["metrics"]]
    other = report | report[OUT_OF_DOMAIN] if OUT_OF_DOMAIN in report else None
    return pages.render(
        TEMPLATE,
        title=title,
        cards=_cards(report),
        targets=[_target(target) for target in report["targets"]],
        names=tuple(names.values()),
        scores=[*rows, _floor(report, names)],
        others=[]
        if other is None
        else [*(_row(other, names, who) for who in other["metrics"]), _floor(other, names)],
        dashes=_dashes(names, [v for one in (report, other or {}) for v in _all_scores(one)]),
        differences=_differences(report, names),
        ratios=_ratios(report),
        kept=_kept(report),
        caution=" ".join(text for key, text in _CAUTION.items() if key in names),
        units="shots" if "about" in report else "clips",
        latency=_latency(report["latency"]),
        step=_step(report["step"]),
        seen=_seen(report),
        stages=[
            Row(name, (Cell(pages.seconds(stage["seconds"])), Cell(str(stage["attempts"]))))
            for name, stage in report["stages"].items()
        ],
        curves=curves,
        pictures=[_picture(caption, path) for caption, path in pictures],
        recipe=recipe,
        left_out=left_out,
        made=f"cosmos-distill {report['version']}",
    )


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    nfe = report["nfe"]
    met = sum(t["met"] is True for t in report["targets"])
    cards = {
        "network evaluations per clip": f"{nfe['teacher']} → {nfe['student']}",
        "lower latency, measured here": f"{shown(report['latency_ratio'], '.1f')}×",
        "for all stages": pages.seconds(report["wall_seconds"]),
    }
    if report["targets"]:
        cards["targets met"] = f"{met} of {len(report['targets'])}"
    return [{"value": value, "text": text} for text, value in cards.items()]


def _target(target: Mapping[str, Any]) -> dict[str, str]:
    kind, verdict = "", "met"
    if target["met"] is None:
        verdict = f"no score: {target['reason']}"
    elif target["met"]:
        kind = "met"
    else:
        kind, verdict = "missed", f"missed (by {abs(target['value'] / target['bound'] - 1):.0%})"
    bound = f"{target['direction']} {target['bound']:.4g}"
    return {
        "name": target["name"],
        "value": shown(target["value"]),
        "bound": bound,
        "kind": kind,
        "verdict": verdict,
    }


def _row(report: Mapping[str, Any], names: Mapping[str, str], who: str) -> Row:
    values = report["metrics"][who]
    label = report["labels"].get(who, "codec alone: an upper bound" if who == "codec" else who)
    return Row(label, [_cell(values, m, values["intervals"][m], values["draws"][m]) for m in names], who)


def _floor(report: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    floor = report["floor"]
    if "about" not in report:  # one metric alone has a floor
        floor = floor | {key: {"frechet": floor[old]} for key, old in _OLD_FLOOR.items()}
    cells = [
        _cell(floor, m, floor["intervals"][m], floor["draws"][m]) if m in floor else Cell("") for m in names
    ]
    return Row("real clips against other real clips: the floor", cells)


def _cell(
    scores: Mapping[str, Any],
    metric: str,
    interval: Sequence[float | None] | None,
    draws: Sequence[float | None],
) -> Cell:
    reasons = reasons_of(scores)
    if scores[metric] is None:
        return Cell(shown(None), reasons.get(metric, UNKNOWN))
    value, spread = shown(scores[metric]), f"per draw: {', '.join(map(shown, draws))}"
    if interval is None or None in interval:
        why = reasons.get(f"intervals.{metric}", UNKNOWN)
        return Cell(value, spread, shown(None), f"no interval: {why}")
    return Cell(value, spread, f"{shown(interval[0])} – {shown(interval[1])}")


def _all_scores(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*report["metrics"].values(), report["floor"]] if report else []


def _dashes(names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Why there are dashes in the table: every reason once."""
    found: dict[str, None] = {}
    for row in rows:
        for key, why in reasons_of(row).items():
            interval, metric = key.startswith("intervals."), key.removeprefix("intervals.")
            found[f"{names.get(metric, metric)}{', interval' if interval else ''}: {why}."] = None
    return " ".join(found)


def _differences(report: Mapping[str, Any], names: Mapping[str, str]) -> list[Row]:
    """The student less everyone else, on the same replicas of the shots."""
    rows = []
    for pair, apart in report.get("differences", {}).items():
        who, _, other = pair.partition("-")
        if who == "student":
            label = report["labels"].get(other, other)
            rows.append(Row(f"student less {label}", [_difference(apart[m]) for m in names]))
    return rows


def _difference(of: Mapping[str, Any]) -> Cell:
    if of["low"] is None:
        return Cell(shown(of["value"]), of.get("reason", UNKNOWN))
    return Cell(shown(of["value"]), small=f"{shown(of['low'])} – {shown(of['high'])}")


def _ratios(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Ratios of distances with their intervals."""
    found = []
    student = report["metrics"].get("student")
    for who, interval in report["ratio_intervals"].items():
        value = ratio(student["frechet"], report["metrics"][who]["frechet"], {}, "")
        if value is None or interval is None or None in interval:
            small = f"({report['ratio_reasons'].get(who, UNKNOWN)})"
        else:
            small = f"{interval[0]:.2f} – {interval[1]:.2f}"
        label = report["labels"].get(who, who)
        found.append({"text": f"student / {label}: {shown(value, '.2f')}", "small": small})
    return found


def _kept(report: Mapping[str, Any]) -> str:
    """What became of given frames in the student's clips."""
    psnr = report["given_frames"].get("student", {}).get("psnr", ())
    return ", ".join("exact" if p == 100 else f"{p:.1f} dB" for p in psnr)


def _latency(latency: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    return [
        Row(
            size.replace("_", " "),
            (
                Cell(f"{1e3 * v['teacher']['median']:,.1f} ms"),
                Cell(f"{1e3 * v['student']['median']:,.1f} ms"),
                Cell(f"{shown(v['ratio'], '.1f')}×", reasons_of(v).get("ratio", "")),
            ),
        )
        for size, v in latency.items()
    ]


def _step(step: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A training step with the operators' backends and without; None where none was measured."""
    if step is None:
        return None
    labels = {
        "picked": f"picked here: {', '.join(step['picked'])}",
        "reference": "reference throughout",
        "reference_sdpa": "reference, but attention by torch's own SDPA",
    }
    rows = [
        Row(
            labels[who],
            (
                Cell(f"{1e3 * taken['median']:,.1f} ms"),
                Cell("", small=f"{1e3 * taken['fastest']:,.1f} – {1e3 * taken['slowest']:,.1f}"),
                Cell(f"{shown(step['ratios'].get(who, 1.0), '.2f')}×"),
            ),
        )
        for who, taken in step["seconds"].items()
    ]
    return {"rows": rows, "micro_batch": step["micro_batch"]}


def _seen(report: Mapping[str, Any]) -> list[Row]:
    """What training saw of each source of a mixture."""
    return [
        Row(f"{stage}: {source}", (Cell(f"{found['samples']:,}"), Cell(f"{found['share']:.1%}")))
        for stage, details in report.get("details", {}).items()
        for source, found in details.get("seen", {}).items()
    ]


def _picture(caption: str, path: Path) -> dict[str, str]:
    """One figure; a file that is gone or is no picture any more is named in its place."""
    why = "no PNG, or cut off"
    try:
        content = path.read_bytes() if path.is_file() or not path.exists() else b""  # a pipe has no end
    except OSError as error:
        content, why = b"", error.strerror or "unreadable"
    if not (content.startswith(_PNG[0]) and content.endswith(_PNG[1])):
        return {"caption": caption, "file": path.name, "why": why, "data": ""}
    return {"caption": caption, "file": path.name, "why": "", "data": pages.data_url(content, "png")}
