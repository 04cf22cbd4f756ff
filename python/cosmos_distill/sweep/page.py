"""What a sweep has found, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_distill import pages
from cosmos_distill.config import Recipe
from cosmos_distill.eval.metrics import find
from cosmos_distill.files import finite
from cosmos_distill.sweep import compare
from cosmos_distill.sweep.compare import Standing
from cosmos_distill.sweep.running import Trial
from cosmos_distill.sweep.search import options_of

_BETTER = {"lower": "lower is better", "higher": "higher is better", "one": "nearer to 1 is better"}


def document(
    standings: Sequence[Standing], trials: Sequence[Trial], metric: str, recipe: Recipe
) -> dict[str, Any]:
    """Everything of sweep.json that the runs have told."""
    found = find(metric)
    order = compare.ranked(standings, found)
    best = order[0] if order and order[0].score.value is not None else None
    stage = recipe.stages[compare.evaluate_stage(recipe)]
    return {
        "about": {
            "title": found.title,
            "unit": found.unit,
            "better": _BETTER[found.direction],
            "direction": found.direction,
            "clips": getattr(stage, "clips", None),
            "split": "validation" if recipe.data.source == "film" else "held out",
        },
        "settings": [_setting(one, best, metric) for one in order],
        "effects": compare.effects(standings, found),
        "best": None
        if best is None
        else {"setting": dict(best.setting), "options": " ".join(options_of(best.setting))},
        "runs": [
            {
                "setting": dict(trial.setting),
                "seed": trial.recipe.seed,
                "divisor": trial.round.divisor,
                "folder": trial.out.name,
                "seconds": trial.seconds,
                "shared": list(trial.shared),
                "error": trial.error,
            }
            for trial in trials
        ],
    }


def _setting(one: Standing, best: Standing | None, metric: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "setting": dict(one.setting),
        "score": one.score.document(),
        "seeds": {str(seed): score.value for seed, score in sorted(one.scores.items())},
        "divisor": one.divisor,
        "left_out": one.left_out,
        "errors": list(one.errors),
        "behind": None,
    }
    if best is not None and one is not best and one.divisor == best.divisor and one.scores:
        found["behind"] = compare.behind(best, one, find(metric)).document()
    return found


def html(document: Mapping[str, Any]) -> str:
    """The page: a table of settings, best first, and the effect of every option."""
    document = finite(document)
    return pages.render(
        Path(__file__).parent / "page.html.jinja",
        sweep=document,
        heads=_heads(list(dict.fromkeys(o for one in document["settings"] for o in one["setting"]))),
        bars={option: _bars(values) for option, values in document["effects"].items()},
    )


def _heads(options: Sequence[str]) -> dict[str, str]:
    """Option -> as little of its end as tells it from the others."""
    parts = {option: option.lstrip("-").split(".") for option in options}

    def end(option: str) -> str:
        for count in range(1, len(parts[option])):
            short = parts[option][-count:]
            if sum(other[-count:] == short for other in parts.values()) == 1:
                return ".".join(short)
        return ".".join(parts[option])

    return {option: end(option) for option in options}


def _bars(values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each value: where its mean and its interval lie on a line from the least to the most, in percent."""
    known = [v for v in values.values() if v["value"] is not None]
    ends = [end for v in known for end in (v["value"], v["low"], v["high"]) if end is not None]
    least, most = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = (most - least) or 1.0

    def at(value: float | None) -> float | None:
        return None if value is None else 2 + 96 * (value - least) / room

    return [
        {**v, "name": name, "at": at(v["value"]), "low": at(v["low"]), "high": at(v["high"])}
        for name, v in values.items()
    ]
