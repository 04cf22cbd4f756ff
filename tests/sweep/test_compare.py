"""Who is best, by how much, and who is tried no further: on scores that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cosmos_distill.eval.metrics import find
from cosmos_distill.eval.statistics import Score
from cosmos_distill.sweep.compare import Standing, behind, drop, effects, over_seeds, ranked

MMD = find("mmd")
SHOTS = np.random.default_rng(0).standard_normal(400)
"""What replicas of the shots do to every run alike."""


def score(value: float, own: float = 0.1, seed: int = 0) -> Score:
    replicas = value + 10 * SHOTS + own * np.random.default_rng(seed + 1).standard_normal(400)
    return Score(
        value, float(np.quantile(replicas, 0.025)), float(np.quantile(replicas, 0.975)), replicas=replicas
    )


def standing(name: str, *values: float, divisor: int = 1) -> Standing:
    return Standing({"--lr": name}, {s: score(v, seed=len(name) + s) for s, v in enumerate(values)}, divisor)


def test_the_mean_over_seeds_is_as_unsure_as_seeds_and_shots_make_it():
    one = over_seeds([score(10.0)])
    assert one.value == 10 and one.low == pytest.approx(10 - 19.6, abs=2.5)
    alike, apart = (
        over_seeds([score(10.0), score(10.0, seed=1)]),
        over_seeds([score(-40.0), score(60.0, seed=1)]),
    )
    assert alike.value == apart.value == 10 and apart.draws == (-40.0, 60.0)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    assert over_seeds([]).value is None and over_seeds([Score(None, reason="why")]).reason == "why"
    unsure = over_seeds([score(10.0), Score(20.0, reason="no shots")])
    assert unsure.value == 15 and unsure.low is None and unsure.reason == "no shots"


def test_a_difference_is_much_surer_than_either_score():
    best, other = standing("a", 10.0, 11.0), standing("b", 12.0, 13.0)
    apart = behind(best, other, MMD)
    assert apart.value == pytest.approx(2) and 1.5 < apart.low < apart.high < 2.5
    assert best.score.high - best.score.low > 20
    # Only seeds that both have count.
    assert behind(best, standing("c", 15.0), MMD).value == pytest.approx(5)


def test_who_is_clearly_behind_or_has_no_score_is_tried_no_further():
    best, close, far = standing("best", 10.0), standing("close", 10.02), standing("far", 20.0)
    broken = Standing({"--lr": "broken"}, errors=["exit status 1"])
    drop([close, far, broken, best], MMD, halve=False)
    assert best.left_out is None and close.left_out is None
    assert far.left_out.startswith("clearly behind: by 10") and broken.left_out == "exit status 1"


def test_halving_keeps_the_better_half():
    five = [standing(str(v), v, divisor=4) for v in (10.0, 10.01, 10.02, 10.03, 10.04)]
    drop(five, MMD, halve=True)
    assert [one.left_out is None for one in five] == [True, True, True, False, False]


def test_order_and_direction():
    higher = dataclasses.replace(MMD, direction="higher")
    some = [
        standing("a", 1.0),
        standing("b", 3.0),
        standing("early", 9.0, divisor=2),
        Standing({"--lr": "none"}),
    ]
    assert [one.setting["--lr"] for one in ranked(some, higher)] == ["b", "a", "early", "none"]
    assert [one.setting["--lr"] for one in ranked(some, MMD)] == ["a", "b", "early", "none"]
    near_one = dataclasses.replace(MMD, direction="one")
    assert [o.setting["--lr"] for o in ranked([standing("a", 0.1), standing("b", 1.5)], near_one)] == [
        "b",
        "a",
    ]


def test_effects_are_means_over_what_was_trained_in_full():
    def one(lr: str, gan: str, value: float, divisor: int = 1) -> Standing:
        return Standing({"--lr": lr, "--gan": gan}, {0: score(value)}, divisor)

    found = effects(
        [one("1", "0", 10.0), one("1", "1", 20.0), one("2", "0", 30.0), one("2", "1", 99.0, 2)], MMD
    )
    assert found["--lr"]["1"]["value"] == 15 and found["--lr"]["1"]["runs"] == 2
    assert found["--lr"]["2"]["value"] == 30 and found["--gan"]["0"]["value"] == 20
