"""Squared MMD: unbiased over shots, against loops over pairs, and blind to how many windows a shot has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_distill.eval.kernels import Space, cubic, discrepancy, gaussian
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Resampling, Sample

KERNELS = [gaussian, cubic]


def shots(
    count: int, windows: int, seed: int, *, shift: float = 0.0, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Numbers of ``windows`` windows of each of ``count`` shots that resemble each other, and their shots."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 1, 6, generator=random).double() + shift
    values = centres + 0.2 * torch.randn(count, windows, 6, generator=random).double()
    return values.flatten(0, 1), torch.arange(first, first + count).repeat_interleave(windows)


def once(*samples: Sample) -> Tensor:
    return torch.ones(1 + max(int(s.numbered().max()) for s in samples)).double()


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_mean_over_pairs_of_different_shots(kernel) -> None:
    reference, sample = Sample(*shots(7, 3, 0)), Sample(*shots(5, 2, 1, first=4))
    space = Space.of(reference.values)
    k = kernel(space(reference.values))

    def mean(a: Sample, b: Sample) -> float:
        found = [
            float(k(space(x[None]), space(y[None])))
            for x, u in zip(a.values, a.numbered(), strict=True)
            for y, v in zip(b.values, b.numbered(), strict=True)
            if u != v
        ]
        return float(np.mean(found))

    wanted = mean(sample, sample) + mean(reference, reference) - 2 * mean(sample, reference)
    found = discrepancy(reference, kernel, 1000.0)(sample)(once(reference, sample))
    assert found == pytest.approx(1000 * wanted, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_replica_is_the_score_of_the_shots_it_draws(kernel) -> None:
    """A shot that is drawn twice counts twice, but its two copies are not compared with each other."""
    values, units = shots(6, 2, 2)
    reference = Sample(*shots(9, 2, 3, first=6))
    counts = torch.tensor([2.0, 0, 1, 1, 0, 3] + [1] * 9).double()
    found = discrepancy(reference, kernel)(Sample(values, units))(counts)
    space = Space.of(reference.values)
    k = kernel(space(reference.values))
    drawn = torch.cat([torch.full((int(c),), u) for u, c in enumerate(counts[:6])])
    x = torch.cat([space(values[units == u]) for u in drawn])
    who = drawn.repeat_interleave(2)
    y = space(reference.values)
    apart = who[:, None] != who
    other = reference.numbered()[:, None] != reference.numbered()
    wanted = k(x, x)[apart].mean() + k(y, y)[other].mean() - 2 * k(x, y).mean()
    assert found == pytest.approx(float(wanted), rel=1e-9)


def test_equal_distributions_score_nothing_on_average_however_many_windows_a_shot_has() -> None:
    for windows in (1, 6):
        found = []
        for seed in range(60):
            reference = Sample(*shots(24, 2, 1000 + seed, first=12))
            sample = Sample(*shots(12, windows, seed))
            found.append(discrepancy(reference, gaussian, 1000.0)(sample)(once(reference, sample)))
        error = float(np.std(found) / len(found) ** 0.5)
        assert abs(np.mean(found)) < 3 * error, (windows, np.mean(found), error)
        # Pairs of windows of one shot would look like a distribution that is too narrow.
        if windows > 1:
            naive = []
            for seed in range(60):
                reference = Sample(shots(24, 2, 1000 + seed)[0])
                sample = Sample(shots(12, windows, seed)[0])
                naive.append(discrepancy(reference, gaussian, 1000.0)(sample)(torch.ones(1)))
            assert np.mean(naive) > 5 * error


def test_sets_of_the_same_shots_are_compared_across_shots_and_much_more_sharply() -> None:
    spread = {}
    for shared in (True, False):
        found = []
        for seed in range(30):
            values, units = shots(16, 4, seed)
            sample = Sample(values[::2], units[::2])
            other = (values[1::2], units[1::2]) if shared else shots(16, 2, 500 + seed, first=16)
            reference = Sample(*other)
            found.append(discrepancy(reference, gaussian, 1000.0)(sample)(once(reference, sample)))
        spread[shared] = float(np.std(found))
    assert spread[True] < spread[False] / 5


def test_it_grows_with_the_shift_and_its_interval_holds_it() -> None:
    reference = Sample(*shots(40, 3, 0, first=30))
    scores = []
    for shift in (0.0, 0.5, 1.0):
        sample = Sample(*shots(30, 3, 1, shift=shift))
        found = discrepancy(reference, gaussian, 1000.0)(sample)
        scores.append(Resampling(sample.units, 70).score([found]))
    assert scores[0].value < scores[1].value < scores[2].value
    assert all(s.low < s.value < s.high for s in scores)
    assert scores[0].low < 0 < scores[0].high < scores[2].low


def test_what_cannot_be_compared_says_why() -> None:
    reference = Sample(*shots(8, 2, 0, first=1))
    one = Sample(*shots(1, 5, 1))
    with pytest.raises(NoScore, match="single shot"):
        discrepancy(reference, gaussian)(one)(once(reference, one))
    with pytest.raises(NoScore, match="three or more"):
        discrepancy(Sample(torch.zeros(2, 4).double()), gaussian)
    with pytest.raises(NoScore, match="the same clip"):
        discrepancy(Sample(torch.zeros(9, 4).double()), gaussian)


def test_clips_of_unknown_shots_are_compared_with_all_but_themselves() -> None:
    values, _ = shots(10, 1, 0)
    other, _ = shots(14, 1, 1)
    unknown = discrepancy(Sample(other), gaussian)(Sample(values))(torch.ones(1))
    known = discrepancy(Sample(other, torch.arange(10, 24)), gaussian)(Sample(values, torch.arange(10)))
    assert unknown == pytest.approx(known(torch.ones(24).double()))
