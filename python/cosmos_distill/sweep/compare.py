"""Which setting is best, how far the others are behind, and how sure that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_distill.config import Evaluate, Recipe
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.statistics import Score, difference
from cosmos_distill.files import read_json
from cosmos_distill.stages import measures

Key = tuple[tuple[str, str], ...]
"""A setting, in its own order, as something that can be looked up."""


@dataclass
class Standing:
    """What is known of one setting."""

    setting: Mapping[str, str]
    scores: dict[int, Score] = field(default_factory=dict)
    """Seed -> score at the furthest rung that it reached."""
    divisor: int = 1
    """Of the steps of training behind these scores."""
    errors: list[str] = field(default_factory=list)
    left_out: str | None = None
    """Why it was not tried further."""

    @property
    def key(self) -> Key:
        """To look it up."""
        return tuple(self.setting.items())

    @property
    def score(self) -> Score:
        """Over its seeds."""
        return over_seeds([score for _, score in sorted(self.scores.items())])


def over_seeds(scores: Sequence[Score]) -> Score:
    """The mean of training seeds, with an interval over shots and seeds.

    A replica of the mean takes as many seeds as there are, with replacement, each on the same replica of the
    shots: the bootstrap of two crossed factors. Of one seed the interval is over shots alone.
    """
    known = [score for score in scores if score.value is not None]
    if not known:
        return Score(None, reason=next((score.reason for score in scores), None) or "no run has ended")
    values = [score.value for score in known if score.value is not None]
    value = float(np.mean(values))
    if any(score.replicas is None for score in known):
        return Score(value, draws=tuple(values), reason=next(s.reason for s in known if s.replicas is None))
    count = min(len(score.replicas) for score in known if score.replicas is not None)
    table = np.stack([score.replicas[:count] for score in known if score.replicas is not None])
    seeds = np.random.Generator(np.random.Philox(1)).integers(len(known), size=(len(known), count))
    replicas = table[seeds, np.arange(count)].mean(0)
    low, high = np.quantile(replicas, [0.025, 0.975])
    return Score(value, float(low), float(high), tuple(values), replicas=replicas)


def read(out: Path, recipe: Recipe, who: str, metric: str) -> Score:
    """The score of one run's candidate."""
    name = evaluate_stage(recipe)
    found = read_json(out / name / "scores.json")["metrics"].get(who)
    if found is None:
        return Score(None, reason=f"the run has no {who}")
    value = found.get(metric)
    replicas = measures.replicas(out / name, who, metric)
    reasons = found.get("reasons", {})
    reason = reasons.get(metric) or reasons.get(f"intervals.{metric}")
    if value is None or replicas is None:
        return Score(value, reason=reason or "it has no interval")
    low, high = found["intervals"][metric]
    return Score(value, low, high, replicas=replicas)


def evaluate_stage(recipe: Recipe) -> str:
    """Name of the recipe's last Evaluate stage."""
    return [name for name, stage in recipe.stages.items() if isinstance(stage, Evaluate)][-1]


def ranked(standings: Sequence[Standing], metric: Metric) -> list[Standing]:
    """Best first; those without a score last, and those that were trained for less behind the others."""

    def order(one: Standing) -> tuple[bool, int, float]:
        value = one.score.value
        return value is None, one.divisor, 0.0 if value is None else metric.error(value)

    return sorted(standings, key=order)


def behind(best: Standing, other: Standing, metric: Metric) -> Score:
    """How much further from right ``other`` is, by shots and seeds that both have."""
    seeds = sorted(set(best.scores) & set(other.scores))
    pairs = [difference(other.scores[s], best.scores[s], metric.error) for s in seeds]
    return over_seeds(pairs)


def drop(alive: Sequence[Standing], metric: Metric, halve: bool) -> None:
    """Mark the settings that are not tried further: those without a score, those that are clearly behind the
    best, and, to ``halve``, the worse half of what is left."""
    order = [one for one in ranked(alive, metric) if one.score.value is not None]
    for one in alive:
        if one.score.value is None:
            one.left_out = one.errors[-1] if one.errors else one.score.reason
    for place, one in enumerate(order[1:], start=1):
        apart = behind(order[0], one, metric)
        if apart.low is not None and apart.low > 0:
            one.left_out = f"clearly behind: by {apart.value:.3g} [{apart.low:.3g}, {apart.high:.3g}]"
        elif halve and place >= (len(order) + 1) // 2:
            one.left_out = f"not in the better half at 1/{one.divisor} of the steps"


def effects(standings: Sequence[Standing], metric: Metric) -> dict[str, dict[str, dict[str, Any]]]:
    """Option -> value -> mean of what was trained in full under it, with the interval."""
    full = [one for one in standings if one.divisor == 1 and one.score.value is not None]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for option in dict.fromkeys(option for one in full for option in one.setting):
        for value in dict.fromkeys(one.setting[option] for one in full):
            mine = [score for one in full if one.setting[option] == value for score in one.scores.values()]
            mean = dataclasses.replace(over_seeds(mine), draws=())
            found.setdefault(option, {})[value] = mean.document() | {"runs": len(mine)}
    return found
