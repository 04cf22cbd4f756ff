"""Intervals, floor and latency: what makes a score trustworthy."""

import pytest
import torch

from cosmos_distill.eval import gaussians, latency
from cosmos_distill.eval.scores import Clips, ratio_interval, score
from cosmos_distill.eval.statistics import interval, resamples


def clips(count: int, shift: float, seed: int) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 64, generator=generator).double() + shift
    edges = torch.randint(1, 50, (count, 3), generator=generator).double()
    ssim = torch.rand(count, generator=generator).double()
    return Clips(features, {"canny_f1": edges, "blur_ssim": ssim})


def test_interval_of_a_mean_is_the_textbook_one() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    low, high = interval(lambda w: float(x.mean() if w is None else w @ x / w.sum()), resamples(400, 1000))
    half = 1.96 * float(x.std()) / 20
    assert low == pytest.approx(float(x.mean()) - half, abs=0.02)
    assert high == pytest.approx(float(x.mean()) + half, abs=0.02)


def test_centred_interval_holds_the_distance_that_resampling_inflates() -> None:
    found, reference = clips(200, 0.1, 0), gaussians.gaussian(clips(2000, 0.0, 1).features)
    value, weights = found.frechet(reference), resamples(200)
    assert interval(lambda w: found.frechet(reference, w), weights)[0] > value  # why it is needed
    low, high = interval(lambda w: found.frechet(reference, w), weights, centred=True)
    assert 0 <= low < value < high


def test_scores_have_value_interval_and_draws_for_everyone() -> None:
    reference, real = clips(1000, 0.0, 2), clips(120, 0.0, 3)
    found = score({"near": clips(120, 0.0, 4), "far": clips(120, 1.0, 5)}, real, reference, draws=3)
    near, far, floor = found["metrics"]["near"], found["metrics"]["far"], found["floor"]["frechet"]
    assert far["frechet"] > 10 + near["frechet"]
    assert near["frechet"] == pytest.approx(floor, rel=0.3)
    for values in (near, far):
        assert all(len(values["draws"][m]) == 3 for m in ("frechet", "canny_f1", "blur_ssim"))
        for metric in ("canny_f1", "blur_ssim"):
            low, high = values["intervals"][metric]
            assert low < values[metric] < high
            assert min(values["draws"][metric]) <= values[metric] <= max(values["draws"][metric])


def test_ratio_interval_holds_the_ratio_of_distances() -> None:
    reference = clips(1000, 0.0, 2)
    near, far = clips(150, 0.3, 3), clips(150, 0.9, 4)
    target = gaussians.gaussian(reference.features)
    low, high = ratio_interval(near, far, reference)
    assert low < near.frechet(target) / far.frechet(target) < high < 0.5
    assert ratio_interval(near, near, reference) == (1.0, 1.0)


def test_latency_takes_turns_and_the_median() -> None:
    order: list[str] = []
    cost = {"slow": iter([9.0, 5.0, 30.0, 6.0]), "fast": iter([1.0] * 13)}
    now = 0.0

    def call(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(cost[name])

    found = latency.interleaved(
        {"slow": lambda: call("slow"), "fast": lambda: call("fast")},
        rounds=3,
        repeats={"fast": 4},
        clock=lambda: now,
    )
    assert found["slow"].median == 6.0  # the first, untimed call cost 9
    assert (found["slow"].fastest, found["slow"].slowest, found["fast"].median) == (5.0, 30.0, 1.0)
    assert order[:3] == ["slow", "fast", "slow"] and order[2:7] == ["slow", "fast", "fast", "fast", "fast"]


def test_a_long_call_may_be_warmed_by_a_short_one() -> None:
    called: list[str] = []
    latency.interleaved(
        {"long": lambda: called.append("long")}, rounds=2, warm={"long": lambda: called.append("short")}
    )
    assert called == ["short", "long", "long"]
