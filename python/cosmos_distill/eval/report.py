"""The report of a run: what was kept and what was lost, as JSON. :mod:`cosmos_distill.eval.page` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.eval.missing import known, ratio

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
UNKNOWN = "scored by an earlier version, which gave no reason"
METRICS = {
    "frechet": "Fréchet distance ↓",
    "canny_f1": "Canny-F1 ↑",
    "blur_ssim": "blur-SSIM ↑",
    "motion": "motion, 1 is real",
}
OWN = ("metrics", "floor", "clips", "given_frames", "about", "differences", "shots")
"""What a set of held-out clips has of its own in a report."""
ARROWS = {"lower": " ↓", "higher": " ↑", "one": ", 1 is real"}
"""Direction of a metric -> what its column's title ends in."""


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
    other = scores.get(OUT_OF_DOMAIN)
    return {
        "nfe_ratio": scores["nfe"]["teacher"] / scores["nfe"]["student"],
        "latency_ratio": timed["ratio"],
        **{key: scores[key] for key in kept},
        **{key: scores[key] for key in named if key in scores},
        # Clips of another kind than those trained on, scored alike.
        **({} if other is None else {OUT_OF_DOMAIN: {key: other[key] for key in OWN if key in other}}),
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
                reasons, lost = reasons_of(metrics[other]) | reasons_of(metrics["student"]), dict[str, str]()
                value = ratio(metrics["student"][key], metrics[other][key], lost, "")
                found.append(_target(name, value, direction, bound, reasons.get(key, lost.get(""))))
        if "motion" in metrics["student"] and not named:
            motion, why = metrics["student"]["motion"], reasons_of(metrics["student"]).get("motion")
            found.append(
                _target("motion energy, student / real clips", motion, "at least", _LEAST_MOTION, why)
            )
        if "student" in (kept := report["given_frames"]):
            least = min(kept["student"]["psnr"])
            found.append(_target("PSNR of given frames in dB, 100 is exact", least, "at least", 100.0))
    if wall_limit is not None:
        found.append(_target("seconds for all stages", report["wall_seconds"], "at most", wall_limit))
    return found


def _target(
    name: str, value: float | None, direction: str, bound: float, why: str | None = None
) -> dict[str, Any]:
    target = {"name": name, "value": value, "direction": direction, "bound": bound}
    if value is None:
        return target | {"met": None, "reason": why or UNKNOWN}
    return target | {"met": value <= bound if direction == "at most" else value >= bound}


def reasons_of(scores: Mapping[str, Any]) -> dict[str, str]:
    """Why numbers are missing, by metric."""
    return dict(scores.get("reasons", {}))
