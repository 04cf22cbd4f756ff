"""Predict2.5 behind the denoise seam: rectified flow, a time for every frame, frames given as they are."""

import math

import pytest
import torch

from cosmos_distill import models
from cosmos_distill.config import Guidance, TrigFlow
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.diffusion import TrigFlowSchedule, combine, few_step
from cosmos_distill.methods.denoiser import Denoiser, guided
from cosmos_distill.models.predict25.config import PRESETS
from tests.methods.fake_network import FakeNetwork, make_batch

ODD = TrigFlowSchedule(TrigFlow(sigma_data=0.5))
T = torch.tensor([0.4, math.pi / 2], dtype=torch.float64)
CLEAN_TAU = 1e-4 / (1 + 1e-4)


@pytest.fixture
def schedule():
    return TrigFlowSchedule()


def noisy(batch, schedule):
    alpha, sigma = (v.reshape(-1, 1, 1, 1, 1).to(batch.noise) for v in schedule.noising(T))
    return alpha * batch.latents + sigma * batch.noise


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_x0_is_rectified_flows(batch, sd):
    """x0 = x_rf - tau * network(x_rf, tau)."""
    schedule, network = TrigFlowSchedule(TrigFlow(sigma_data=sd)), FakeNetwork()
    x0 = Denoiser(network, schedule)(noisy(batch, schedule), T, Conditioning(text=batch.conditioning.text))
    tau = torch.tensor([sd * math.tan(0.4) / (1 + sd * math.tan(0.4)), 1.0])
    x_rf = (1 - tau)[:, None, None, None, None] * batch.latents + tau[:, None, None, None, None] * batch.noise
    call = network.calls[0]
    torch.testing.assert_close(call.c_noise, tau)
    torch.testing.assert_close(call.x, x_rf)
    velocity = network(call.x, call.c_noise, batch.conditioning.text)
    torch.testing.assert_close(x0, x_rf - tau[:, None, None, None, None] * velocity)
    assert x0.dtype == call.x.dtype == call.c_noise.dtype == torch.float32


@pytest.mark.parametrize("count", [(0, 1), (2, 0), (1, 2), (2, 2)])
def test_given_frames_enter_as_they_are_and_come_back_exact(schedule, batch, count):
    network = FakeNetwork()
    x_t = noisy(batch, schedule)
    bare = Denoiser(network, schedule)(x_t, T, batch.conditioning)
    x0 = Denoiser(network, schedule)(x_t, T, batch.given(torch.tensor(count)))
    plain, call = network.calls
    assert plain.condition_mask is None and plain.c_noise.shape == (2,), "no given frame costs nothing"
    for sample, given in enumerate(count):
        assert torch.equal(call.x[sample, :, :given], batch.latents[sample, :, :given])
        torch.testing.assert_close(call.x[sample, :, given:], plain.x[sample, :, given:])
        own = [CLEAN_TAU] * given + [float(plain.c_noise[sample])] * (3 - given)
        assert call.c_noise[sample].tolist() == pytest.approx(own, rel=1e-6)
        assert torch.equal(x0[sample, :, :given], batch.latents[sample, :, :given])
        assert not torch.isclose(x0[sample, :, given:], batch.latents[sample, :, given:]).any()
        marked = call.condition_mask[sample, 0].flatten(1)
        assert marked[:given].eq(1).all() and marked[given:].eq(0).all()
        if not given:
            torch.testing.assert_close(x0[sample], bare[sample])


def test_given_frames_are_scaled_by_sigma_data(batch):
    network = FakeNetwork()
    condition = batch.given(torch.tensor([1, 2]))
    x0 = Denoiser(network, ODD)(noisy(batch, ODD), T, condition)
    assert torch.equal(network.calls[0].x[1, :, :2], batch.latents[1, :, :2] / 0.5)
    assert network.calls[0].c_noise[1, :2].tolist() == pytest.approx([CLEAN_TAU] * 2, rel=1e-6)
    assert torch.equal(x0[1, :, :2], batch.latents[1, :, :2])


def test_a_network_may_want_the_samples_time_on_given_frames(schedule, batch):
    network = FakeNetwork(clean_condition_times=False)
    condition = batch.given(torch.tensor([1, 2]))
    Denoiser(network, schedule)(noisy(batch, schedule), T, condition)
    call = network.calls[0]
    torch.testing.assert_close(call.c_noise, schedule.to_tau(T).float())
    assert torch.equal(call.x[1, :, :2], batch.latents[1, :, :2])


def test_the_mask_of_given_frames(batch):
    mask = batch.given(torch.tensor([0, 2])).given_mask(3)
    assert mask.shape == (2, 1, 3, 1, 1)
    assert mask.flatten(1).tolist() == [[False] * 3, [True, True, False]]
    assert batch.given(torch.tensor([0, 0])).given_mask(3) is None


def test_the_unconditional_branch_keeps_or_zeroes_the_frames(schedule, batch):
    """Zeroed, the mask, the time and the frames of the result stay."""
    network = FakeNetwork()
    denoiser, x_t = Denoiser(network, schedule), noisy(batch, schedule)
    condition = batch.given(torch.tensor([1, 2]))
    kept, zeroed = Guidance(3.0), Guidance(3.0, unconditional_frames="zeroed")
    x0 = {g: guided(denoiser, condition, g)(x_t, T) for g in (kept, zeroed)}
    cond, with_frames, again, without = network.calls
    assert torch.equal(cond.x, with_frames.x) and torch.equal(cond.x, again.x)
    assert all(torch.equal(call.text, batch.conditioning.negative_text) for call in (with_frames, without))
    for sample, given in enumerate((1, 2)):
        assert not without.x[sample, :, :given].any()
        assert torch.equal(without.x[sample, :, given:], cond.x[sample, :, given:])
    assert torch.equal(without.condition_mask, cond.condition_mask)
    assert torch.equal(without.c_noise, cond.c_noise)
    for result in x0.values():
        assert torch.equal(result[1, :, :2], batch.latents[1, :, :2])
    unconditional = condition.unconditional("zeroed")
    branches = [denoiser(x_t, T, c) for c in (condition, unconditional)]
    torch.testing.assert_close(x0[zeroed], combine(*branches, zeroed))


def test_times_reach_the_coefficients_unrounded(schedule, batch):
    """A narrow state or network does not round what the network is told: tau at atan 5 is 5/6."""
    t = torch.full((2,), math.atan(5), dtype=torch.float64)
    for x_t in (batch.noise, batch.noise.bfloat16()):
        network = FakeNetwork().bfloat16()
        x0 = Denoiser(network, schedule)(x_t, t, Conditioning(text=batch.conditioning.text))
        assert network.calls[0].c_noise.tolist() == pytest.approx([5 / 6] * 2, rel=1e-7)
        assert network.calls[0].c_noise.dtype == x0.dtype == torch.float32
        assert network.calls[0].x.dtype == torch.bfloat16


def test_the_four_step_student_keeps_given_frames_through_all_steps(schedule):
    """The real network at its smallest: exact frames, a gradient for everything that is not frozen."""
    config = PRESETS["predict2.5-smoke"]
    network = models.build(config, seed=0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = make_batch(shape=(config.latent_channels, 3, 4, 4))
    g = torch.Generator().manual_seed(0)
    text = torch.randn(2, config.text_tokens, config.text_channels, generator=g)
    condition = Conditioning(text=text, clean=batch.latents, given_frames=torch.tensor([0, 2]))
    denoise = Denoiser(network, schedule).bind(condition)
    x0 = few_step(denoise, batch.noise, schedule.student_times(), schedule.noising, last_gradient_only=True)
    assert torch.equal(x0[1, :, :2], batch.latents[1, :, :2])
    x0.square().mean().backward()
    trained = {k: p for k, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    assert {k for k, p in network.named_parameters() if not p.requires_grad} == {
        "base.text_projection.proj.weight",
        "base.text_projection.proj.bias",
    }
