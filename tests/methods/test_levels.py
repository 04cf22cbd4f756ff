"""Noise levels of Predict2.5; Transfer1's are tested with the methods that draw them."""

import math

import pytest
import torch

from cosmos_distill.config import TrigFlow
from cosmos_distill.diffusion import TrigFlowSchedule
from cosmos_distill.methods import Noise
from cosmos_distill.methods.levels import Grid, LogNormal, ShiftedTime
from tests.methods.fake_network import make_batch

TRIGFLOW = TrigFlowSchedule(TrigFlow())


def taus(levels, count=4000):
    batch = make_batch(count, shape=(1, 2, 1, 1))
    t = levels.draw(batch, TRIGFLOW, Noise(0, 0, 0, count))
    assert t.dtype == torch.float64 and float(t.min()) > 0 and float(t.max()) <= math.pi / 2
    return TRIGFLOW.to_tau(t)


def test_uniform_time_under_shift_5_has_the_published_quantiles():
    tau = taus(ShiftedTime("uniform"))
    assert float(tau.median()) == pytest.approx(5 / 6, abs=0.01)
    assert float((tau < 0.25).double().mean()) == pytest.approx(0.0625, abs=0.015)


def test_logit_normal_time_is_shifted_too():
    tau = taus(ShiftedTime("logit_normal"))
    assert float(tau.median()) == pytest.approx(5 / 6, abs=0.01)  # the median of sigmoid(N) is 1/2 as well
    back = tau / (5 - 4 * tau)
    assert float(back.logit().std()) == pytest.approx(1.0, abs=0.05)


def test_a_uniform_number_of_zero_is_not_the_clean_end():
    class Zero(Noise):
        def uniform(self, name, device="cpu"):
            return torch.zeros(self.count)

    t = ShiftedTime().draw(make_batch(), TRIGFLOW, Zero(0, 0, 0, 2))
    assert t.tolist() == pytest.approx([math.pi / 2] * 2)  # the critic's loss divides by sin t


def test_levels_of_another_schedule_are_refused(schedule):
    batch, noise = make_batch(), Noise(0, 0, 0, 2)
    for levels, coordinate in ((Grid(), TRIGFLOW), (LogNormal(), TRIGFLOW), (ShiftedTime(), schedule)):
        with pytest.raises(ValueError, match=r"levels: .* belongs to"):
            levels.draw(batch, coordinate, noise)
