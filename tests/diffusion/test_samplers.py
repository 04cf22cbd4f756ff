"""The teacher's sampler against the exact solution of a Gaussian's probability-flow ODE."""

import math

import pytest
import torch

from cosmos_distill.config import EDM
from cosmos_distill.diffusion import EDMSchedule, res_2ab
from tests.diffusion.gaussian import MEAN, STD

SCHEDULE = EDMSchedule(EDM())


def gaussian(x, sigma):
    """The exact denoiser of data distributed as N(MEAN, STD^2)."""
    keep = (STD**2 / (STD**2 + sigma**2))[:, None]
    return keep * x + (1 - keep) * MEAN


def exact(x_T, sigma_T, sigma):
    """The ODE's solution: deviations from the mean shrink like the marginal's standard deviation."""
    return MEAN + (x_T - MEAN) * math.sqrt((STD**2 + sigma**2) / (STD**2 + sigma_T**2))


def error(steps):
    noise = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = SCHEDULE.sampling_sigmas(steps)
    sampled = res_2ab(gaussian, noise * 80, sigmas)
    last = float(sigmas[-1])
    expected = gaussian(exact(noise * 80, 80, last), torch.full((4,), last, dtype=torch.float64))
    return float((sampled - expected).abs().max())


def test_thirty_five_steps_are_thirty_six_evaluations():
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    sigmas = SCHEDULE.sampling_sigmas(35)
    res_2ab(denoise, torch.randn(2, 3) * 80, sigmas)
    assert len(calls) == 36
    torch.testing.assert_close(torch.stack(calls), sigmas.float()[:, None].expand(36, 2))


def test_second_order_convergence():
    coarse, middle, fine = error(40), error(80), error(160)
    for ratio in (coarse / middle, middle / fine):
        assert 1.85 < math.log2(ratio) < 2.2


def test_thirty_six_evaluations_reproduce_the_distribution():
    assert error(35) < 0.04
    noise = torch.randn(1, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampled = res_2ab(gaussian, noise * 80, SCHEDULE.sampling_sigmas(35))
    assert float(sampled.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(sampled.std()) == pytest.approx(STD, abs=0.02)


def test_levels_must_decrease():
    for bad in ([80.0, 0.0], [1.0, 2.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="decreasing"):
            res_2ab(gaussian, torch.zeros(1, 1), torch.tensor(bad))


def test_bf16_starts_are_integrated_in_fp32():
    seen = set()

    def denoise(x, sigma):
        seen.add((x.dtype, sigma.dtype))
        return x / 2

    res_2ab(denoise, torch.ones(1, 2, dtype=torch.bfloat16), SCHEDULE.sampling_sigmas(3))
    assert seen == {(torch.float32, torch.float32)}
