"""The report of a run: what was kept and what was lost, as JSON for machines and one HTML file for people."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from cosmos_distill.eval.missing import known, ratio, shown

# Speed that a student of so many evaluations should reach: ratio of evaluations, of latency.
_SPEED = {1: (72.0, 55.0), 4: (17.5, 14.0)}
# Quality, where the report has both: name, metric, whom the student is compared with, direction, bound.
_RATIOS = (
    ("Fréchet distance, student / KD student", "frechet", "kd_student", "at most", 0.75),
    ("Fréchet distance, student / one-step teacher", "frechet", "teacher_1step", "at most", 0.5),
    ("Fréchet distance, student / four-step teacher", "frechet", "teacher_4step", "at most", 0.6),
    ("Fréchet distance, student / teacher", "frechet", "teacher", "at most", 1.25),
    ("Canny-F1, student / teacher", "canny_f1", "teacher", "at least", 0.95),
)
_LEAST_MOTION = 0.5
_UNKNOWN = "scored by an earlier version, which gave no reason"
_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
METRICS = {
    "frechet": "Fréchet distance ↓",
    "canny_f1": "Canny-F1 ↑",
    "blur_ssim": "blur-SSIM ↑",
    "motion": "motion, 1 is real",
}
ARROWS = {"lower": " ↓", "higher": " ↑", "one": ", 1 is real"}
"""Direction of a metric -> what its column's title ends in."""
_CAUTION = {
    "canny_f1": "A blurry mean scores well on Canny-F1 and blur-SSIM: read them together with the distance.",
    "motion": "Motion is the energy of frame differences over that of the real clips: near 0 a clip stands "
    "still, far above 1 it flickers.",
}


def summary(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The part of report.json that scores.json gives. A number that does not exist is None, and ``reasons``
    beside it says why.

    Args:
        scores: The content of scores.json; of earlier versions, which knew no reasons, too.
    """
    scores = known(scores)
    kept = ("metrics", "floor", "clips", "nfe", "latency", "labels", "given_frames")
    named = ("schema", "about", "differences", "shots")  # where the recipe names its metrics
    timed = scores["latency"][f"batch_{scores['settings']['batch']}"]
    return {
        "nfe_ratio": scores["nfe"]["teacher"] / scores["nfe"]["student"],
        "latency_ratio": timed["ratio"],
        **{key: scores[key] for key in kept},
        **{key: scores[key] for key in named if key in scores},
        "ratio_intervals": scores.get("ratio_intervals", {}),
        "ratio_reasons": scores.get("ratio_reasons", {}),
        "step": scores.get("step"),
    }


def metrics_of(report: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of this report and their names."""
    if "about" in report:
        return {key: said["title"] + ARROWS[said["direction"]] for key, said in report["about"].items()}
    first = next(iter(report["metrics"].values()))
    return {key: name for key, name in METRICS.items() if key in first}


def targets(report: Mapping[str, Any], wall_limit: float | None, quality: bool) -> list[dict[str, Any]]:
    """What was to be reached and what was: met, missed, or None where there is no such number, with a
    ``reason``.

    Args:
        wall_limit: Seconds that all stages may take; None sets no limit.
        quality: Whether the student is to be judged, and its speed; a smoke test's is not.
    """
    found = []
    metrics = report["metrics"]
    if quality and "student" in metrics:
        if (steps := report["nfe"]["student"]) in _SPEED:
            fewer, faster = _SPEED[steps]
            name = "network evaluations, teacher / student"
            found.append(_target(name, report["nfe_ratio"], "at least", fewer))
            found.append(_target("latency, teacher / student", report["latency_ratio"], "at least", faster))
        # Metrics that the recipe names are for comparing: nothing is asked of their values.
        named = "about" in report
        for name, key, other, direction, bound in () if named else _RATIOS:
            if other in metrics and key in metrics[other]:
                reasons, lost = _reasons(metrics[other]) | _reasons(metrics["student"]), dict[str, str]()
                value = ratio(metrics["student"][key], metrics[other][key], lost, "")
                found.append(_target(name, value, direction, bound, reasons.get(key, lost.get(""))))
        if "motion" in metrics["student"] and not named:
            motion, why = metrics["student"]["motion"], _reasons(metrics["student"]).get("motion")
            found.append(
                _target("motion energy, student / real clips", motion, "at least", _LEAST_MOTION, why)
            )
        if "student" in (kept := report["given_frames"]):
            least = min(kept["student"]["psnr"])
            found.append(_target("PSNR of given frames in dB, 100 is exact", least, "at least", 100.0))
    if wall_limit is not None:
        found.append(_target("seconds for all stages", report["wall_seconds"], "at most", wall_limit))
    return found


def html(
    report: Mapping[str, Any],
    *,
    title: str,
    curves: str,
    pictures: Sequence[tuple[str, Path]],
    recipe: str,
) -> str:
    """A page that needs no other file.

    Args:
        report: The content of report.json.
        curves: An ``<svg>`` of the losses.
        pictures: Caption and PNG file, in order.
        recipe: The resolved recipe as text.
    """
    return Template(_PAGE).substitute(
        title=escape(title),
        cards=_cards(report),
        targets=_targets(report["targets"]),
        metrics=_metrics(report),
        compared=_compared(report),
        caution=" ".join(text for key, text in _CAUTION.items() if key in metrics_of(report)),
        units="shots" if "about" in report else "clips",
        latency=_latency(report["latency"]),
        step=_step(report["step"]),
        stages=_stages(report),
        curves=curves,
        pictures="".join(_picture(caption, path) for caption, path in pictures),
        recipe=escape(recipe),
        made=escape(f"cosmos-distill {report['version']}"),
    )


def _target(
    name: str, value: float | None, direction: str, bound: float, why: str | None = None
) -> dict[str, Any]:
    target = {"name": name, "value": value, "direction": direction, "bound": bound}
    if value is None:
        return target | {"met": None, "reason": why or _UNKNOWN}
    return target | {"met": value <= bound if direction == "at most" else value >= bound}


def _reasons(scores: Mapping[str, Any]) -> dict[str, str]:
    return dict(scores.get("reasons", {}))


def _cards(report: Mapping[str, Any]) -> str:
    nfe = report["nfe"]
    met = sum(t["met"] is True for t in report["targets"])
    cards = [
        (f"{nfe['teacher']} → {nfe['student']}", "network evaluations per clip"),
        (f"{shown(report['latency_ratio'], '.1f')}×", "lower latency, measured here"),
        (_seconds(report["wall_seconds"]), "for all stages"),
    ]
    if report["targets"]:
        cards.append((f"{met} of {len(report['targets'])}", "targets met"))
    return "".join(f"<div class=card><b>{escape(big)}</b><span>{small}</span></div>" for big, small in cards)


def _targets(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "<p>This run is too small to be judged by targets.</p>"
    rows = []
    for target in found:
        if target["met"] is None:
            mark = f"<td>no score: {escape(target['reason'])}</td>"
        elif target["met"]:
            mark = "<td class=met>met</td>"
        else:
            mark = f"<td class=missed>missed (by {abs(target['value'] / target['bound'] - 1):.0%})</td>"
        rows.append(
            f"<tr><td class=name>{escape(target['name'])}</td><td>{shown(target['value'])}</td>"
            f"<td>{target['direction']} {target['bound']:.4g}</td>{mark}</tr>"
        )
    return f"<table><tr><th></th><th>reached</th><th>target</th><th></th></tr>{''.join(rows)}</table>"


_OLD_FLOOR = {"intervals": "interval", "draws": "draws"}


def _metrics(report: Mapping[str, Any]) -> str:
    names = metrics_of(report)
    head = "".join(f"<th>{name}</th>" for name in names.values())
    rows = []
    for who, values in report["metrics"].items():
        cells = "".join(_cell(values, m, values["intervals"][m], values["draws"][m]) for m in names)
        label = report["labels"].get(who, "codec alone: an upper bound" if who == "codec" else who)
        rows.append(f'<tr class="{escape(who)}"><td class=name>{escape(label)}</td>{cells}</tr>')
    floor = report["floor"]
    if "about" not in report:  # one metric alone has a floor
        floor = floor | {key: {"frechet": floor[old]} for key, old in _OLD_FLOOR.items()}
    cells = "".join(
        _cell(floor, m, floor["intervals"][m], floor["draws"][m]) if m in floor else "<td></td>"
        for m in names
    )
    rows.append(f"<tr><td class=name>real clips against other real clips: the floor</td>{cells}</tr>")
    table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    return table + _missing(names, [*report["metrics"].values(), floor])


def _cell(
    scores: Mapping[str, Any],
    metric: str,
    interval: Sequence[float | None] | None,
    draws: Sequence[float | None],
) -> str:
    reasons = _reasons(scores)
    if scores[metric] is None:
        return f'<td title="{escape(reasons.get(metric, _UNKNOWN))}">{shown(None)}</td>'
    spread = ", ".join(map(shown, draws))
    if interval is None or None in interval:
        why = reasons.get(f"intervals.{metric}", _UNKNOWN)
        small = f'<small title="no interval: {escape(why)}">{shown(None)}</small>'
    else:
        small = f"<small>{shown(interval[0])} – {shown(interval[1])}</small>"
    return f'<td title="per draw: {spread}">{shown(scores[metric])} {small}</td>'


def _missing(names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Why there are dashes in the table: every reason once."""
    found: dict[str, None] = {}
    for row in rows:
        for key, why in _reasons(row).items():
            interval, metric = key.startswith("intervals."), key.removeprefix("intervals.")
            found[f"{names.get(metric, metric)}{', interval' if interval else ''}: {why}."] = None
    return f"<p><small>Dashes: {escape(' '.join(found))}</small></p>" if found else ""


def _compared(report: Mapping[str, Any]) -> str:
    """Differences or ratios of distances with their intervals, and what became of given frames."""
    found = []
    text = _differences(report) if "differences" in report else ""
    student = report["metrics"].get("student")
    for who, interval in report["ratio_intervals"].items():
        label = escape(report["labels"].get(who, who))
        value = ratio(student["frechet"], report["metrics"][who]["frechet"], {}, "")
        if value is None or interval is None or None in interval:
            why = escape(report["ratio_reasons"].get(who, _UNKNOWN))
            found.append(f"student / {label}: {shown(value, '.2f')} <small>({why})</small>")
        else:
            low, high = interval
            found.append(f"student / {label}: {value:.2f} <small>{low:.2f} – {high:.2f}</small>")
    if found:
        text += f"<p>Fréchet distances compared clip by clip: {'; '.join(found)}.</p>"
    for who, kept in report["given_frames"].items():
        if who == "student":
            psnr = ", ".join("exact" if p == 100 else f"{p:.1f} dB" for p in kept["psnr"])
            text += f"<p>Given frames in the student's clips, frame by frame: {psnr}.</p>"
    return text


def _differences(report: Mapping[str, Any]) -> str:
    """The student less everyone else, on the same replicas of the shots."""
    names = metrics_of(report)
    rows = []
    for pair, apart in report["differences"].items():
        who, _, other = pair.partition("-")
        if who == "student":
            cells = "".join(_difference(apart[m]) for m in names)
            label = escape(report["labels"].get(other, other))
            rows.append(f"<tr><td class=name>student less {label}</td>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names.values())
    return f"<div class=scroll><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>" if rows else ""


def _difference(of: Mapping[str, Any]) -> str:
    if of["low"] is None:
        return f'<td title="{escape(of.get("reason", _UNKNOWN))}">{shown(of["value"])}</td>'
    return f"<td>{shown(of['value'])} <small>{shown(of['low'])} – {shown(of['high'])}</small></td>"


def _latency(latency: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td class=name>{escape(size.replace('_', ' '))}</td>"
        f"<td>{1e3 * v['teacher']['median']:,.1f} ms</td>"
        f"<td>{1e3 * v['student']['median']:,.1f} ms</td>"
        f'<td title="{escape(_reasons(v).get("ratio", ""))}">{shown(v["ratio"], ".1f")}×</td></tr>'
        for size, v in latency.items()
    ]
    return f"<table><tr><th></th><th>teacher</th><th>student</th><th>ratio</th></tr>{''.join(rows)}</table>"


def _step(step: Mapping[str, Any] | None) -> str:
    """A training step with the operators' backends and without; nothing where none was measured."""
    if step is None:
        return ""
    labels = {
        "picked": f"picked here: {', '.join(step['picked'])}",
        "reference": "reference throughout",
        "reference_sdpa": "reference, but attention by torch's own SDPA",
    }
    rows = "".join(
        f"<tr><td class=name>{escape(labels[who])}</td><td>{1e3 * taken['median']:,.1f} ms</td>"
        f"<td><small>{1e3 * taken['fastest']:,.1f} – {1e3 * taken['slowest']:,.1f}</small></td>"
        f"<td>{shown(step['ratios'].get(who, 1.0), '.2f')}×</td></tr>"
        for who, taken in step["seconds"].items()
    )
    return (
        "<h2>Training step by backend</h2><div class=scroll><table><tr><th></th><th>median</th>"
        f"<th>fastest – slowest</th><th>over picked</th></tr>{rows}</table></div>"
        f"<p><small>Forward and backward of the student's one-step regression, {step['micro_batch']} clips, "
        "in turn, without the optimiser.</small></p>"
    )


def _stages(report: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td class=name>{escape(name)}</td><td>{_seconds(stage['seconds'])}</td>"
        f"<td>{stage['attempts']}</td></tr>"
        for name, stage in report["stages"].items()
    ]
    return f"<table><tr><th></th><th>time</th><th>attempts</th></tr>{''.join(rows)}</table>"


def _picture(caption: str, path: Path) -> str:
    """One figure; a file that is gone or is no picture any more is named in its place."""
    alt = escape(caption)
    try:
        content = path.read_bytes() if path.is_file() or not path.exists() else b""  # a pipe has no end
    except OSError as error:
        content, why = b"", error.strerror or "unreadable"
    else:
        why = "no PNG, or cut off"
    if not (content.startswith(_PNG[0]) and content.endswith(_PNG[1])):
        return f"<figure><figcaption>{alt}: {escape(path.name)} cannot be shown ({why})</figcaption></figure>"
    data = base64.b64encode(content).decode()
    return (
        f'<figure><figcaption>{alt}</figcaption><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
    )


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a8a4a; --bad: #c24a3a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { background: var(--soft); border-radius: .6rem; padding: .8rem 1.2rem; flex: 1 1 10rem; }
.card b { display: block; font-size: 1.7rem; } .card span { opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
.name { text-align: left; } small { opacity: .65; } tr.student { background: var(--soft); font-weight: 600; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
figure { margin: 1.4rem 0; overflow-x: auto; } img { max-width: 100%; } figcaption { margin-bottom: .4rem; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; border-radius: .6rem; font-size: .85rem; }
</style></head><body>
<h1>$title</h1>
<div class="cards">$cards</div>
<h2>Targets</h2><div class="scroll">$targets</div>
<h2>Held-out clips</h2><div class="scroll">$metrics</div>
$compared
<p><small>Small numbers are 95 % bootstrap intervals over $units; a cell's tooltip has the value of each draw.
Distances to real clips near the floor cannot be told apart. $caution</small></p>
<h2>Latency</h2><div class="scroll">$latency</div>
<p><small>Median over interleaved warm rounds on this machine, latents only (no decoder, no text
encoder).</small></p>
$step
<h2>Clips</h2>$pictures
<h2>Losses</h2>$curves
<h2>Stages</h2><div class="scroll">$stages</div>
<h2>Recipe</h2><pre>$recipe</pre>
<p><small>$made</small></p>
</body></html>
"""
