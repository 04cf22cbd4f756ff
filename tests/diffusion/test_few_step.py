"""The samplers of Predict2.5: the student's few steps and the teacher's Euler steps."""

import math

import pytest
import torch

from cosmos_distill.config import EDM, TrigFlow
from cosmos_distill.diffusion import EULER_RF, EDMSchedule, TrigFlowSchedule, euler_rf, few_step
from tests.diffusion.gaussian import MEAN, STD

SCHEDULES = [TrigFlowSchedule(), TrigFlowSchedule(TrigFlow(sigma_data=0.5))]
SCHEDULE = SCHEDULES[0]


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(schedule):
    """The exact denoiser of data distributed as N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, sigma = (v[:, None] for v in schedule.noising(t))
        return (STD**2 * alpha * x + sigma**2 * MEAN) / (STD**2 * alpha**2 + sigma**2)

    return denoise


def exact(schedule, noise, first, last):
    """x0 predicted at ``last`` on the ODE's path from ``noise`` at ``first``: in EDM's scale, deviations
    from the mean shrink like the marginal's standard deviation."""
    high, low = float(schedule.to_sigma(first)), float(schedule.to_sigma(last))
    x = MEAN + (high * noise - MEAN) * math.sqrt((STD**2 + low**2) / (STD**2 + high**2))
    return (STD**2 * x + low**2 * MEAN) / (STD**2 + low**2)


def euler_error(schedule, steps):
    """Of Euler's x0 at tau = 0.1, from tau = 0.99 in equal steps."""
    times = schedule.from_tau(torch.linspace(0.99, 0.1, steps + 1, dtype=torch.float64)).tolist()
    noise = normal(4, 64)
    sampled = euler_rf(gaussian(schedule), noise, times, schedule.noising)
    return float((sampled - exact(schedule, noise, times[0], times[-1])).abs().max())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd 1", "sd 0.5"])
def test_euler_converges_in_first_order(schedule):
    coarse, middle, fine = (euler_error(schedule, steps) for steps in (100, 200, 400))
    for ratio in (coarse / middle, middle / fine):
        assert 0.95 < math.log2(ratio) < 1.1


def test_euler_is_the_step_of_rectified_flow():
    """The same numbers from the state and the velocity of rectified flow, written out."""
    times = SCHEDULE.teacher_times(5)
    denoise, noise = gaussian(SCHEDULE), normal(3, 8)
    x = noise
    taus = [*SCHEDULE.to_tau(torch.tensor(times, dtype=torch.float64)).tolist(), 0.0]
    for t, tau, following in zip(times, taus[:-1], taus[1:], strict=True):
        x_t = x * (math.cos(t) + math.sin(t))
        velocity = (x - denoise(x_t, torch.full((3,), t, dtype=torch.float64))) / tau
        x = x + (following - tau) * velocity
    torch.testing.assert_close(euler_rf(denoise, noise, times, SCHEDULE.noising), x, rtol=1e-12, atol=1e-12)


def test_thirty_five_euler_steps_are_the_published_accuracy():
    calls = []

    def denoise(x, t):
        calls.append(t)
        return gaussian(SCHEDULE)(x, t)

    sampled = EULER_RF.sample(denoise, normal(1, 20_000, seed=1), SCHEDULE, 35)
    assert len(calls) == 35 and {(t.dtype, t.shape) for t in calls} == {(torch.float64, (1,))}
    assert [float(t) for t in calls] == SCHEDULE.teacher_times(35)
    assert float(sampled.mean()) == pytest.approx(1.494, abs=0.01)
    assert float(sampled.std()) == pytest.approx(0.433, abs=0.01)


def recorder(schedule=SCHEDULE):
    """A denoiser that keeps the graph and what it was called with."""
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return torch.tanh(x) * 0.7 + 0.1 * t.to(x)[:, None]

    return denoise, seen


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd 1", "sd 0.5"])
def test_the_students_steps_by_hand(schedule):
    denoise, seen = recorder()
    times, noise = schedule.student_times(), normal(2, 6)
    x0 = few_step(denoise, noise, times, schedule.noising)
    x = noise
    for i, t in enumerate(times):
        torch.testing.assert_close(seen[i][0], x, rtol=1e-14, atol=1e-15)
        assert seen[i][1].tolist() == [t, t] and seen[i][1].dtype == torch.float64
        clean = torch.tanh(x) * 0.7 + 0.1 * t
        if i + 1 < len(times):
            x = math.cos(times[i + 1]) * clean / schedule.config.sigma_data + math.sin(times[i + 1]) * noise
    assert len(seen) == 4
    torch.testing.assert_close(x0, clean, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_sees_the_samplers_own_steps_bit_for_bit(dtype):
    """The backward simulation of n steps ends where the sampler is after n of its steps."""
    times, noise = SCHEDULE.student_times(), normal(2, 6).to(dtype)
    denoise, sampler = recorder()
    few_step(denoise, noise, times, SCHEDULE.noising)
    for n in range(1, 5):
        training, simulated = recorder()
        x0 = few_step(training, noise, times[:n], SCHEDULE.noising, last_gradient_only=True)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(simulated, sampler, strict=False))
        assert torch.equal(x0, denoise(*sampler[n - 1]))


def test_gradient_through_the_last_evaluation_only():
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    times, noise = SCHEDULE.student_times(3), normal(2, 6)

    def denoise(x, t):
        return weight * torch.tanh(x)

    x0 = few_step(denoise, noise, times, SCHEDULE.noising, last_gradient_only=True)
    (last,) = torch.autograd.grad(x0.sum(), weight)
    torch.testing.assert_close(last, x0.sum().detach()[None])  # d(w * h) / dw = h at w = 1, h held fixed
    (whole,) = torch.autograd.grad(few_step(denoise, noise, times, SCHEDULE.noising).sum(), weight)
    assert not torch.isclose(whole, last)
    with torch.no_grad():
        assert not few_step(denoise, noise, times, SCHEDULE.noising, last_gradient_only=True).requires_grad


def test_fresh_noise_at_every_step():
    denoise, seen = recorder()
    times, noise = SCHEDULE.student_times(), normal(2, 6)
    asked = []

    def fresh(i):
        asked.append(i)
        return normal(2, 6, seed=i).float()

    few_step(denoise, noise, times, SCHEDULE.noising, fresh=fresh)
    assert asked == [1, 2, 3]
    for i in asked:
        clean = denoise(*seen[i - 1])
        expected = math.cos(times[i]) * clean + math.sin(times[i]) * normal(2, 6, seed=i).float().double()
        torch.testing.assert_close(seen[i][0], expected, rtol=1e-14, atol=1e-15)


def test_one_time_is_one_denoise_of_scaled_noise():
    """Transfer1's student."""
    noise, schedule = torch.randn(3, 5), EDMSchedule(EDM())
    x0 = few_step(lambda x, t: x + t[:, None].float(), noise, schedule.student_times(1), schedule.noising)
    torch.testing.assert_close(x0, noise * 80 + 80)


def test_narrow_noise_is_integrated_in_fp32():
    noise = torch.ones(1, 2, dtype=torch.bfloat16)
    for sampler in (few_step, euler_rf):
        denoise, seen = recorder()
        sampler(denoise, noise, SCHEDULE.student_times(), SCHEDULE.noising)
        assert {x.dtype for x, _ in seen} == {torch.float32}


def test_times_must_decrease():
    for sampler in (few_step, euler_rf):
        for bad in ([], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]):
            with pytest.raises(ValueError, match="decreasing"):
                sampler(lambda x, t: x, torch.zeros(1, 1), bad, SCHEDULE.noising)
