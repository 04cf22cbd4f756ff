"""TrigFlow's angle: conversions, both forms of preconditioning, and the grids, against closed forms."""

import math

import mpmath
import pytest
import torch

from cosmos_distill.config import EDM, TrigFlow
from cosmos_distill.diffusion import EDMSchedule, TrigFlowSchedule, build_schedule, schedule_from_dict

SCHEDULE = TrigFlowSchedule()
ODD = TrigFlowSchedule(TrigFlow(sigma_data=0.5, shift=3.0))
INNER = torch.cat([torch.logspace(-14, -1, 14, dtype=torch.float64), torch.linspace(0.2, 1.57, 9).double()])
ANGLES = torch.cat([torch.zeros(1).double(), INNER, torch.tensor([math.pi / 2]).double()])


def reference(t, sd):
    """(sigma, tau) with 40 digits."""
    with mpmath.workdps(40):
        sigma = sd * mpmath.tan(mpmath.mpf(t))
        return float(sigma), float(sigma / (1 + sigma))


@pytest.mark.parametrize("schedule", [SCHEDULE, ODD], ids=["sd 1", "sd 0.5"])
def test_conversions_are_exact_in_fp64(schedule):
    sd = schedule.config.sigma_data
    expected = torch.tensor([reference(float(t), sd) for t in INNER], dtype=torch.float64)
    sigma, tau = schedule.to_sigma(INNER), schedule.to_tau(INNER)
    torch.testing.assert_close(torch.stack([sigma, tau], 1), expected, rtol=5e-16, atol=0)
    torch.testing.assert_close(schedule.from_sigma(sigma), INNER, rtol=5e-16, atol=0)
    # 1 - tau holds few digits of a large sigma: near pi/2 the way back is exact to the spacing of tau.
    torch.testing.assert_close(schedule.from_tau(tau), INNER, rtol=5e-16, atol=2e-16)
    torch.testing.assert_close(tau, sigma / (1 + sigma), rtol=5e-16, atol=0)


def test_conversions_are_safe_at_both_ends():
    for schedule in (SCHEDULE, ODD):
        assert float(schedule.to_sigma(0.0)) == float(schedule.to_tau(0.0)) == 0
        assert float(schedule.from_sigma(0.0)) == float(schedule.from_tau(0.0)) == 0
        assert float(schedule.to_sigma(math.pi / 2)) == math.inf
        assert float(schedule.to_tau(math.pi / 2)) == 1
        assert float(schedule.from_sigma(math.inf)) == float(schedule.from_tau(1.0)) == math.pi / 2
    for dtype in (torch.float32, torch.bfloat16):  # rounded up and down
        end = torch.tensor([math.pi / 2], dtype=dtype)
        assert SCHEDULE.to_sigma(end).tolist() == [math.inf]
        assert [float(v) for v in SCHEDULE.noising(end)] == [0, 1]


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_a_rectified_flow_network_gives_back_x0(sd):
    """The network answers eps - x0; the mean of what it sees is rectified flow's interpolation."""
    schedule = TrigFlowSchedule(TrigFlow(sigma_data=sd))
    x0, eps = torch.randn(2, len(ANGLES), 1, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    alpha, sigma = (v.reshape(-1, 1, 1, 1, 1) for v in schedule.noising(ANGLES))
    x_t = alpha * x0 + sigma * eps
    c_skip, c_out, c_in, c_noise = schedule.precondition(ANGLES)
    tau = c_noise.reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(c_noise, schedule.to_tau(ANGLES), rtol=0, atol=0)
    torch.testing.assert_close(c_in * x_t, (1 - tau) * x0 + tau * eps, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(c_skip * x_t + c_out * (eps - x0), x0, rtol=1e-13, atol=1e-14)
    assert c_noise[0] == 0 and c_noise[-1] == 1
    assert all(bool(c.isfinite().all()) for c in (c_skip, c_out, c_in, c_noise))


def test_an_edm_network_sees_and_answers_as_under_edm():
    """With EDM's x = x_t * sd / cos(t), both schedules make one x0 of one network."""
    schedule = TrigFlowSchedule(TrigFlow(form="edm", sigma_data=0.5))
    edm = EDMSchedule(EDM(sigma_data=0.5)).precondition(schedule.to_sigma(INNER))
    trig = schedule.precondition(INNER)
    scale = 0.5 / INNER.cos().reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(trig.c_in, edm.c_in * scale, rtol=1e-14, atol=0)
    torch.testing.assert_close(trig.c_skip, edm.c_skip * scale, rtol=1e-14, atol=0)
    torch.testing.assert_close(trig.c_out, edm.c_out, rtol=1e-14, atol=0)
    torch.testing.assert_close(trig.c_noise, edm.c_noise, rtol=1e-13, atol=1e-15)
    ends = schedule.precondition(torch.tensor([0, math.pi / 2]))
    assert all(bool(c.isfinite().all()) for c in ends)
    assert ends.c_skip.flatten().tolist() == [0.5, 0] and ends.c_out.flatten().tolist() == [0, 0.5]
    assert ends.c_noise[0] < -9 and ends.c_noise[1] > 9


@pytest.mark.parametrize("sd", [1.0, 0.5, 3.0])
def test_an_edm_network_is_told_the_tangent_of_fp64s_right_angle(sd):
    """The official code takes ln(sigma_data tan(t)) / 4 of t = fp64's pi/2, whose tangent is 1.6e16."""
    schedule = TrigFlowSchedule(TrigFlow(form="edm", sigma_data=sd))
    official = math.log(sd * math.tan(math.pi / 2)) / 4
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # exact, rounded up, rounded down
        told = schedule.precondition(torch.tensor([math.pi / 2], dtype=dtype)).c_noise
        assert float(told) == pytest.approx(official, rel=1e-15 if dtype is torch.float64 else 1e-7)
    start, below = *schedule.student_times(1), math.nextafter(math.pi / 2, 0)
    told = schedule.precondition(torch.tensor([start, below], dtype=torch.float64)).c_noise
    assert told.tolist() == pytest.approx([official, math.log(sd * math.tan(below)) / 4], rel=1e-15)


@pytest.mark.parametrize("form", ["rectified_flow", "edm"])
def test_per_frame_times_and_dtypes(form):
    schedule = TrigFlowSchedule(TrigFlow(form=form))
    t = torch.tensor([[1e-4, 1e-4, 1.3], [0.2, 0.7, math.pi / 2]], dtype=torch.float64)
    frames = schedule.precondition(t)
    assert [tuple(c.shape) for c in frames] == [(2, 1, 3, 1, 1)] * 3 + [(2, 3)]
    for f in range(3):
        for ours, alone in zip(frames, schedule.precondition(t[:, f]), strict=True):
            assert torch.equal(ours[:, f] if ours.ndim == 2 else ours[:, :, f : f + 1], alone)
    for given, expected in {torch.bfloat16: torch.float32, torch.float32: torch.float32}.items():
        assert {c.dtype for c in schedule.precondition(t.to(given))} == {expected}
    narrow, wide = schedule.precondition(t.float()), schedule.precondition(t.float().double())
    assert torch.equal(narrow.c_out, wide.c_out.float()), "rounded once, at the end"


def test_the_loss_weight_makes_the_networks_error_weigh_one():
    for schedule in (SCHEDULE, ODD, TrigFlowSchedule(TrigFlow(form="edm"))):
        t = torch.tensor([0.01, 0.8, math.pi / 2], dtype=torch.float64)
        product = schedule.loss_weight(t) * schedule.precondition(t).c_out.flatten().square()
        torch.testing.assert_close(product, torch.ones(3).double())
    torch.testing.assert_close(SCHEDULE.loss_weight(t), SCHEDULE.to_tau(t) ** -2)
    assert SCHEDULE.loss_weight(t[None]).shape == (1, 3)


def test_the_students_grid_is_the_published_one():
    published = [math.pi / 2, math.atan(15), math.atan(5), math.atan(5 / 3)]
    assert SCHEDULE.student_times() == SCHEDULE.student_times(4) == pytest.approx(published, rel=3e-16)
    assert SCHEDULE.student_times()[0] == math.pi / 2
    for fewer in (1, 2, 3):
        assert SCHEDULE.student_times(fewer) == SCHEDULE.student_times()[:fewer]
    tau = SCHEDULE.to_tau(torch.tensor(SCHEDULE.student_times(8), dtype=torch.float64))
    uniform = tau / (5 - 4 * tau)
    torch.testing.assert_close(uniform, torch.arange(8, 0, -1).double() / 8, rtol=1e-14, atol=0)
    assert SCHEDULE.student_times(8) == SCHEDULE.teacher_times(8)
    assert SCHEDULE.student_times((1.5, 1.0)) == [1.5, 1.0]
    plain = TrigFlowSchedule(TrigFlow(shift=1.0))
    assert plain.to_tau(torch.tensor(plain.student_times())).tolist() == pytest.approx([1, 0.75, 0.5, 0.25])


def test_the_teachers_grid():
    tau = SCHEDULE.to_tau(torch.tensor(SCHEDULE.teacher_times(35), dtype=torch.float64))
    assert len(tau) == 35 and float(tau[0]) == 1
    assert float(tau[-1]) == pytest.approx(5 / 39)  # u = 1/35


def test_impossible_grids_are_refused():
    for steps in (0, -1):
        with pytest.raises(ValueError, match="at least one step"):
            SCHEDULE.student_times(steps)
        with pytest.raises(ValueError, match="at least one step"):
            SCHEDULE.teacher_times(steps)
    for times in ([], [1.0, 1.0], [1.0, 1.2], [1.6, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="decrease strictly"):
            SCHEDULE.student_times(times)


def test_training_draws_lean_towards_noise():
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    tau = SCHEDULE.to_tau(SCHEDULE.shift_time(u))
    assert tau[0] == 0 and tau[-1] == 1
    assert float(tau.median()) == pytest.approx(5 / 6, abs=1e-9)
    assert float((tau < 0.05).double().mean()) == pytest.approx(0.0104, abs=1e-4)
    assert SCHEDULE.shift_time(u.float()).dtype == torch.float64


def test_given_frames_are_told_a_noise_level_of_1e_4():
    assert float(SCHEDULE.to_sigma(SCHEDULE.clean_time)) == pytest.approx(1e-4)
    assert float(ODD.to_sigma(ODD.clean_time)) == pytest.approx(1e-4)


def test_an_export_restores_the_same_schedule():
    odd = TrigFlowSchedule(TrigFlow("edm", sigma_data=0.5, shift=3.0))
    assert TrigFlowSchedule.from_dict(odd.to_dict()) == schedule_from_dict(odd.to_dict()) == odd
    assert build_schedule(odd.config) == odd and build_schedule(EDM()) == EDMSchedule()
    with pytest.raises(ValueError, match="another sampler"):
        TrigFlowSchedule.from_dict({"kind": "edm"})
    with pytest.raises(ValueError, match="sigma_data must be a finite number from"):
        TrigFlow(sigma_data=0.0)
    with pytest.raises(ValueError, match="shift must be a finite number from"):
        TrigFlow(shift=0.0)
