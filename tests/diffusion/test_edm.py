"""Noise levels and preconditioning of EDM."""

import math

import pytest
import torch

from cosmos_distill.config import EDM
from cosmos_distill.diffusion import EDMSchedule, schedule_from_dict

SCHEDULE = EDMSchedule(EDM())


def test_coefficients_at_the_students_level():
    c_skip, c_out, c_in, c_noise = (float(c) for c in SCHEDULE.precondition(torch.tensor([80.0])))
    assert c_skip == pytest.approx(3.906e-5, rel=1e-3)
    assert c_out == pytest.approx(0.49999, abs=1e-5)
    assert c_in == pytest.approx(0.0124998, abs=1e-7)
    assert c_noise == pytest.approx(1.0955, abs=1e-4)


def test_coefficients_are_never_narrower_than_fp32():
    dtypes = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    for given, expected in dtypes.items():
        coefficients = SCHEDULE.precondition(torch.tensor([0.1, 3.0], dtype=given))
        assert {c.dtype for c in coefficients} == {expected}
        assert [tuple(c.shape) for c in coefficients] == [(2, 1, 1, 1, 1)] * 3 + [(2,)]


def test_the_loss_weight_makes_the_networks_error_weigh_one():
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    product = SCHEDULE.loss_weight(sigma) * SCHEDULE.precondition(sigma).c_out.flatten().square()
    torch.testing.assert_close(product, torch.ones(3, dtype=torch.float64))


def test_sampling_grid():
    sigmas = SCHEDULE.sampling_sigmas(35)
    assert sigmas.shape == (36,) and sigmas.dtype == torch.float64
    assert float(sigmas[0]) == pytest.approx(80) and float(sigmas[-1]) == pytest.approx(0.002)
    assert bool((sigmas.diff() < 0).all())
    assert bool((sigmas ** (1 / 7)).diff().diff().abs().max() < 1e-12), "even in sigma^(1/7)"
    with pytest.raises(ValueError, match="at least one step"):
        SCHEDULE.sampling_sigmas(0)


def test_training_grids_have_the_published_range():
    used = SCHEDULE.training_sigmas("edm_sampling")[20:981] * math.sqrt(16)
    assert float(used[0]) == pytest.approx(286.6, abs=0.05)
    assert float(used[-1]) == pytest.approx(0.01263, abs=1e-5)
    assert float(used.median()) == pytest.approx(10.0, abs=0.05)
    inference = SCHEDULE.training_sigmas("inference")
    assert inference.shape == (1000,)
    assert float(inference[0]) == pytest.approx(2.026e-4, abs=1e-7)
    assert float(inference[-1]) == pytest.approx(80)
    with pytest.raises(ValueError, match="edm_sampling"):
        SCHEDULE.training_sigmas("linear")  # type: ignore[arg-type]


def test_one_coefficient_per_frame_or_per_sample():
    sigma = torch.tensor([[0.1, 3.0, 80.0], [0.2, 0.5, 1.0]], dtype=torch.float64)
    frames = SCHEDULE.precondition(sigma)
    assert [tuple(c.shape) for c in frames] == [(2, 1, 3, 1, 1)] * 3 + [(2, 3)]
    for t in range(3):
        for ours, alone in zip(frames, SCHEDULE.precondition(sigma[:, t]), strict=True):
            assert torch.equal(ours[:, t] if ours.ndim == 2 else ours[:, :, t : t + 1], alone)


def test_the_student_starts_at_sigma_max():
    assert SCHEDULE.student_times() == pytest.approx([80])
    times = SCHEDULE.student_times(3)
    assert times == SCHEDULE.sampling_sigmas(3)[:3].tolist()
    alpha, sigma = SCHEDULE.noising(torch.tensor([0.5, 80.0]))
    assert alpha.tolist() == [1, 1] and sigma.tolist() == [0.5, 80]


def test_an_export_restores_the_same_schedule():
    odd = EDMSchedule(EDM(sigma_data=1.0, sigma_min=0.01, sigma_max=70.0, rho=5.0))
    assert EDMSchedule.from_dict(odd.to_dict()) == schedule_from_dict(odd.to_dict()) == odd
    with pytest.raises(ValueError, match="another sampler"):
        EDMSchedule.from_dict({"kind": "trigflow"})
    with pytest.raises(ValueError, match="another version"):
        schedule_from_dict({"sigma_data": 1.0})
