"""Pre-training by denoising, in either noise coordinate."""

import math

import pytest
import torch

from cosmos_distill.config import TrigFlow
from cosmos_distill.diffusion import TrigFlowSchedule
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.levels import LogNormal, ShiftedTime
from tests.methods.fake_network import make_batch


def losses(config, networks, schedule, first=0, count=4):
    method = build(config, networks, schedule)
    batch = make_batch(count, first)
    return method, batch, method.losses(batch, 5, Noise(0, 5, first, count))


def test_loss_is_the_weighted_regression(networks, schedule):
    config = Denoising(text_dropout=0.0)
    method, batch, terms = losses(config, networks, schedule)
    noise = Noise(0, 5, 0, 4)
    sigma = math.sqrt(3) * (1.4 * noise.normal("sigma", ())).exp()
    wide = sigma[:, None, None, None, None]
    eps = noise.normal("eps", batch.latents.shape[1:])
    # The EDM loss in network space: F against (x0 - c_skip x_t) / c_out.
    x_t = batch.latents + wide * eps
    skip, out, _, _ = schedule.precondition(sigma)
    call = method.roles["student"].calls[0]
    raw = method.roles["student"](
        call.x,
        call.c_noise,
        batch.conditioning.text,
        hint=batch.conditioning.hint,
        padding_mask=batch.conditioning.padding_mask,
        fps=batch.conditioning.fps,
    )
    expected = (raw - (batch.latents - skip * x_t) / out).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["loss/denoising"], expected, rtol=1e-4, atol=1e-5)
    assert terms["total"].shape == (4,) and terms["total"].requires_grad


def test_micro_batches_add_up(networks, schedule):
    config = Denoising()
    whole = losses(config, networks, schedule, 0, 6)[2]["total"]
    parts = [
        losses(config, networks, schedule, first, count)[2]["total"]
        for first, count in ((0, 1), (1, 2), (3, 3))
    ]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_text_is_dropped_for_the_negative_prompt(networks, schedule):
    method, batch, _ = losses(Denoising(text_dropout=0.3), networks, schedule, count=200)
    told = method.roles["student"].calls[0].text
    dropped = (told == batch.conditioning.negative_text).flatten(1).all(1)
    kept = (told == batch.conditioning.text).flatten(1).all(1)
    assert bool((dropped ^ kept).all()) and 40 <= int(dropped.sum()) <= 80


def test_frames_are_given_with_their_probabilities(networks, schedule):
    method, _, _ = losses(Denoising(condition_frames=(0.2, 0.5, 0.3)), networks, schedule, count=300)
    given = method.roles["student"].calls[0].condition_mask[:, 0, :, 0, 0].sum(1).int()
    shares = (given.bincount() / 300).tolist()
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.08)


@pytest.mark.parametrize("adjust, factor", [(True, math.sqrt(3)), (False, 1.0)])
def test_levels_are_log_normal(schedule, adjust, factor):
    levels = LogNormal(0.5, 0.7, adjust_video_noise=adjust)
    logs = (levels.draw(make_batch(2000), schedule, Noise(0, 0, 0, 2000)) / factor).log()
    assert float(logs.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(logs.std()) == pytest.approx(0.7, abs=0.05)


def test_only_a_method_can_be_built(networks, schedule):
    from cosmos_distill.config import MethodConfig

    with pytest.raises(TypeError, match="Denoising"):
        build(MethodConfig(), networks, schedule)


def test_under_rectified_flow_the_velocity_is_regressed(networks):
    schedule = TrigFlowSchedule(TrigFlow())
    config = Denoising(levels=ShiftedTime("logit_normal"), text_dropout=0.0, condition_frames=(0.5, 0.5))
    method, batch, terms = losses(config, lambda role: networks(role).double(), schedule, count=8)
    noise = Noise(0, 5, 0, 8)
    tau = schedule.to_tau(config.levels.draw(batch, schedule, noise))[:, None, None, None, None]
    eps = noise.normal("eps", batch.latents.shape[1:])
    call = method.roles["student"].calls[0]
    given = call.condition_mask.bool()
    x_rf = ((1 - tau) * batch.latents + tau * eps).to(call.x)
    torch.testing.assert_close(call.x, torch.where(given, batch.latents.to(call.x), x_rf))
    told = torch.where(given[:, 0, :, 0, 0], 1e-4, tau[:, 0, :, 0, 0].expand(-1, 3))
    torch.testing.assert_close(call.c_noise.double(), told, rtol=1e-3, atol=1e-6)
    raw = method.roles["student"](
        call.x, call.c_noise, batch.conditioning.text, hint=batch.conditioning.hint,
        condition_mask=call.condition_mask,
        padding_mask=batch.conditioning.padding_mask, fps=batch.conditioning.fps,
    )  # fmt: skip
    error = (raw - (eps - batch.latents)).square().masked_fill(given, 0.0)
    torch.testing.assert_close(
        terms["loss/denoising"].double(), error.flatten(1).mean(1), rtol=1e-4, atol=1e-5
    )
