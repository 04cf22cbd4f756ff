"""Intervals over shots: as wide as shots differ, paired differences narrower, nothing made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import mean
from cosmos_distill.eval.statistics import (
    LEAST_UNITS,
    Resampling,
    Sample,
    Score,
    clip_weights,
    difference,
    pooled,
)


def shots(count: int, windows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One number per clip: most of it is the shot's, little the window's."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 1, generator=random) + 0.1 * torch.randn(count, windows, generator=random)
    return values.double().flatten(), torch.arange(count).repeat_interleave(windows)


def score(values: torch.Tensor, units: torch.Tensor | None, draws: int = 1) -> Score:
    sample = Sample(values, units, draws)
    return Resampling(units).score([pooled(mean)(part) for part in sample.parts()])


def test_an_interval_is_as_wide_as_shots_differ_not_as_clips_do() -> None:
    values, units = shots(40, 25)
    found = score(values, units)
    assert found.value == pytest.approx(float(values.mean()))
    of_shots = values.view(40, 25).mean(1)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * float(of_shots.std()) / 40**0.5, rel=0.15)
    assert found.low < found.value < found.high
    clips = score(values, torch.arange(1000))
    assert (found.high - found.low) > 3 * (clips.high - clips.low)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = [(s := score(*shots(30, 4, seed))).low < 0 < s.high for seed in range(100)]
    assert 86 <= sum(held) <= 100


def test_the_difference_of_two_is_paired() -> None:
    """What both share from shot to shot falls out: the difference is far better known than either."""
    values, units = shots(20, 5)
    random = torch.Generator().manual_seed(9)
    other = values + 0.2 + 0.1 * torch.randn(len(values), generator=random).double()
    a, b = score(other, units), score(values, units)
    apart = difference(a, b)
    assert apart.value == pytest.approx(a.value - b.value)
    assert apart.low > 0
    assert a.low < b.high  # the intervals themselves overlap
    assert apart.high - apart.low < (a.high - a.low) / 4
    assert difference(a, a).document() == {"value": 0, "low": 0, "high": 0}


def test_how_far_from_one_is_compared_where_one_is_right() -> None:
    units = torch.arange(12)
    low, high = score(torch.full((12,), 0.7).double(), units), score(torch.full((12,), 1.2).double(), units)
    apart = difference(low, high, lambda value: abs(value - 1))
    assert apart.value == pytest.approx(0.1) and apart.low == pytest.approx(0.1)


def test_units_that_do_not_exist_are_not_made_up() -> None:
    values, units = shots(LEAST_UNITS - 1, 50)
    few, unknown = score(values, units), score(values, None)
    for found, why in ((few, "4 independent shots"), (unknown, "not known which clips are independent")):
        assert found.value == pytest.approx(float(values.mean()))
        assert (found.low, found.high, found.replicas) == (None, None, None)
        assert why in found.reason and why in found.document()["reason"]
    assert score(*shots(LEAST_UNITS, 1)).low is not None
    apart = difference(few, few)
    assert apart.value == 0 and apart.low is None and "independent shots" in apart.reason


def test_a_score_that_is_not_there_has_a_reason_and_so_has_a_difference_to_it() -> None:
    def nothing(counts: torch.Tensor) -> float:
        raise NoScore("nothing moves")

    def sometimes(counts: torch.Tensor) -> float:
        if counts[0] == 0:
            raise NoScore("only the first shot moves")
        return 1.0

    resampling = Resampling(torch.arange(9))
    none = resampling.score([nothing])
    assert none.document() == {"value": None, "low": None, "high": None, "reason": "nothing moves"}
    there = resampling.score([lambda counts: 1.0])
    assert difference(there, none).reason == difference(none, there).reason == "nothing moves"
    partly = resampling.score([sometimes])
    assert partly.value == 1.0 and partly.low is None
    assert "not defined on every replica" in partly.reason and "only the first shot" in partly.reason


def test_draws_are_scored_one_by_one_and_averaged() -> None:
    values, units = shots(10, 2)
    three = torch.cat([values, values + 1, values + 5])
    found = score(three, units.repeat(3), draws=3)
    one = score(values, units)
    assert found.value == pytest.approx(one.value + 2)
    assert found.draws == pytest.approx((one.value, one.value + 1, one.value + 5))
    # Every draw of a shot goes together: more draws of noise are no more shots.
    assert found.high - found.low == pytest.approx(one.high - one.low)


def test_moved_replicas_stay_within_limits() -> None:
    resampling = Resampling(torch.arange(8))
    statistic = pooled(mean)(Sample(torch.linspace(0, 1, 8).double(), torch.arange(8)))
    found = resampling.score([lambda counts: 0.3 + statistic(counts)], centred=True, limits=(0.0, 0.9))
    assert found.value == pytest.approx(0.8) and found.high == 0.9


def test_units_only_in_the_reference_are_never_resampled() -> None:
    resampling = Resampling(torch.tensor([0, 1, 2, 5, 6, 6]), total=9)
    assert resampling.counts.shape == (400, 9)
    assert bool((resampling.counts[:, [3, 4, 7, 8]] == 1).all())
    assert bool((resampling.counts[:, [0, 1, 2, 5, 6]].sum(1) == 5).all())
    assert np.array_equal(resampling.counts, Resampling(torch.tensor([0, 1, 2, 5, 6]), total=9).counts)


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="as many units"):
        Sample(torch.zeros(4), torch.arange(3))
    with pytest.raises(ValueError, match="3 draws"):
        Sample(torch.zeros(4), draws=3)
    with pytest.raises(NoScore, match="no clip counts"):
        clip_weights(Sample(torch.zeros(2), torch.arange(2)), torch.zeros(2))
