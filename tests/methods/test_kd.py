"""Knowledge distillation on stored pairs."""

import math
from dataclasses import replace

import pytest
import torch

from cosmos_distill.config import Optim
from cosmos_distill.diffusion import few_step
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.base import draw_given_frames
from cosmos_distill.methods.kd import KD
from tests.methods.fake_network import make_batch


def test_published_defaults():
    assert KD().student == Optim(
        lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, warmup_steps=0, clip_norm=10.0
    )
    assert KD().condition_frames == (1 / 3, 1 / 3, 1 / 3)


def test_loss_is_half_the_squared_distance_to_the_teachers_clip(networks, schedule, batch):
    method = build(KD(condition_frames=(1.0,)), networks, schedule)
    terms = method.losses(batch, 0, Noise(0, 0, 0, 2))
    call = method.roles["student"].calls[0]
    torch.testing.assert_close(call.x, batch.noise * 80 / math.sqrt(80**2 + 0.25))
    torch.testing.assert_close(call.c_noise, torch.full((2,), math.log(80) / 4))
    x_g = method.sample("student", batch.noise, batch.conditioning)
    expected = 0.5 * ((x_g - batch.latents) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(terms["loss/kd"], expected)
    assert terms["total"].shape == (2,) and method.phase(7) == ("student",) == method.trainable


def test_given_frames_are_the_teachers_and_count_in_the_mean(networks, schedule):
    count = 60
    batch = make_batch(count)
    method = build(KD(), networks, schedule)
    noise = Noise(0, 3, 0, count)
    terms = method.losses(batch, 3, noise)
    mask = method.roles["student"].calls[0].condition_mask[:, 0, :, 0, 0]
    assert sorted(set(mask.sum(1).int().tolist())) == [0, 1, 2]
    x_g = method.sample(
        "student", batch.noise, draw_given_frames(batch, noise, method.config.condition_frames)
    )
    error = (x_g - batch.latents).square()
    assert torch.equal(error.mean((1, 3, 4)) == 0, mask.bool())
    torch.testing.assert_close(terms["loss/kd"], 0.5 * error.flatten(1).mean(1))


def test_training_and_export_sample_alike_bit_for_bit(networks, schedule, batch):
    method = build(KD(), networks, schedule)
    condition = batch.given(torch.tensor([1, 0]))
    rollout = method.sample("student", batch.noise, condition)
    exported = few_step(
        method.denoiser("student").bind(condition), batch.noise, [schedule.sigma_max], schedule.noising
    )
    assert rollout.requires_grad and torch.equal(rollout, exported)


def test_micro_batches_add_up_in_the_gradient(networks, schedule):
    def gradient(parts):
        method = build(KD(), networks, schedule)
        for first, count in parts:
            batch = make_batch(count, first)
            (method.losses(batch, 4, Noise(0, 4, first, count))["total"].sum() / 6).backward()
        return [p.grad for p in method.roles["student"].parameters()]

    for whole, split in zip(gradient([(0, 6)]), gradient([(0, 1), (1, 2), (3, 3)]), strict=True):
        torch.testing.assert_close(whole, split)


def test_clips_without_noise_are_refused(networks, schedule, batch):
    method = build(KD(), networks, schedule)
    with pytest.raises(ValueError, match="KD learns from pairs, and this batch has no noise"):
        method.losses(replace(batch, noise=None), 0, Noise(0, 0, 0, 2))
