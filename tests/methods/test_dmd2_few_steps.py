"""DMD2 as Predict2.5 runs it: several steps under TrigFlow, given frames, features of the fake score."""

import math
from dataclasses import replace

import pytest
import torch

from cosmos_distill.config import FewStep, Guidance, TrigFlow
from cosmos_distill.diffusion import TrigFlowSchedule, few_step
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.base import draw_given_frames, unit_noise
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.levels import ShiftedTime
from cosmos_distill.sampling.samplers import few_steps, noise_of
from tests.methods.fake_network import make_batch

SCHEDULE = TrigFlowSchedule(TrigFlow())
STUDENT_STEP, CRITIC_STEP = 0, 1


def config(**switches):
    return DMD2(
        **{
            "sampler": FewStep(steps=4),
            "guidance": Guidance(3.0, "added"),
            "levels": ShiftedTime(),
            "vsd_form": "predict2.5",
            "fake_score_weighting": "trigflow",
            "mask_given_frames": True,
            "gan_weight": 0.0,
            "gan_features": "fake_score",
            "head": "query_token",
            "condition_frames": (0.6, 0.2, 0.2),
            **switches,
        }
    )


def double(networks):
    return lambda role: networks(role).double()


def simulated_steps(networks, step, parts):
    """Student evaluations of one optimiser step, per micro-batch."""
    method = build(config(), networks, SCHEDULE)
    for first, count in parts:
        method.losses(make_batch(count, first), step, Noise(0, step, first, count))
    calls = len(method.roles["student"].calls)
    assert calls % len(parts) == 0
    return calls // len(parts)


def test_steps_are_uniform_and_the_same_in_every_micro_batch(networks):
    drawn = [Noise(0, step, 0, 1).integer_of_step("student_steps", 1, 5) for step in range(400)]
    assert min(drawn.count(n) for n in (1, 2, 3, 4)) > 70 and set(drawn) == {1, 2, 3, 4}
    for step in (0, 5, 10):
        assert simulated_steps(networks, step, [(0, 4)]) == drawn[step]
        assert simulated_steps(networks, step, [(0, 1), (1, 1), (2, 2)]) == drawn[step]


@pytest.mark.parametrize("fresh", [False, True])
def test_backward_simulation_is_the_exported_sampler_step_by_step(networks, fresh):
    sampler = FewStep(steps=4, fresh_noise=fresh)
    method = build(config(sampler=sampler), networks, SCHEDULE)
    batch = make_batch(2)
    frames = torch.tensor([1, 0])
    condition = batch.given(frames)
    student = method.roles["student"]
    noise = noise_of(0, "student", batch)
    exported = few_steps(student, SCHEDULE, batch, noise, sampler, frames=frames)
    seen = [call.x for call in student.calls]
    assert len(seen) == 4
    for n in (1, 2, 3, 4):  # what an optimiser step that draws n learns on
        student.calls.clear()
        fresh_noise = (lambda i: noise_of(0, f"student_{i}", batch)) if fresh else None
        x_g = method.sample("student", noise, condition, method.times[:n], fresh_noise)
        assert [call.graph for call in student.calls] == [False] * (n - 1) + [True]
        assert all(torch.equal(call.x, x) for call, x in zip(student.calls, seen, strict=False))
    assert torch.equal(x_g.detach(), exported)
    same = few_step(
        method.denoiser("student").bind(condition), noise, SCHEDULE.student_times(4), SCHEDULE.noising
    )
    assert torch.equal(same, x_g) is not fresh


def test_training_draws_the_samplers_noise(networks):
    method = build(config(sampler=FewStep(steps=4, fresh_noise=True)), networks, SCHEDULE)
    batch, step = make_batch(2), 5
    noise = Noise(0, step, 0, 2)
    condition = draw_given_frames(batch, noise, method.config.condition_frames)
    n = noise.integer_of_step("student_steps", 1, 5)
    expected = few_step(
        method.denoiser("student").bind(condition),
        unit_noise(batch, noise, "student"),
        SCHEDULE.student_times(4)[:n],
        SCHEDULE.noising,
        fresh=lambda i: unit_noise(batch, noise, f"student_{i}"),
    )
    assert torch.equal(method.generate(batch, condition, noise), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_both_phases_are_the_papers_in_fp64(networks, masked):
    method = build(config(mask_given_frames=masked), double(networks), SCHEDULE)
    count = 8
    batch = make_batch(count, dtype=torch.float64)
    for step in (STUDENT_STEP, CRITIC_STEP):
        noise = Noise(0, step, 0, count)
        terms = method.losses(batch, step, noise)
        condition = draw_given_frames(batch, noise, (0.6, 0.2, 0.2))
        t = method.config.levels.draw(batch, SCHEDULE, noise)
        cos, sin = (f(t)[:, None, None, None, None] for f in (torch.cos, torch.sin))
        with torch.no_grad():
            x_g = method.generate(batch, condition, noise)
            x_t = cos * x_g + sin * unit_noise(batch, noise, "renoise")
            x_s = method.denoiser("fake_score")(x_t, t, condition)
            x_c, x_u = (
                method.denoiser("teacher")(x_t, t, replace(condition, text=text))
                for text in (batch.conditioning.text, batch.conditioning.negative_text)
            )
        x_teacher = x_c + 3 * (x_c - x_u)
        given = condition.given_mask(3)
        assert given is not None and 0 < int(given.sum()) < given.numel()
        m = (~given if masked else torch.ones_like(given)).double().expand_as(x_g)
        if step == STUDENT_STEP:
            weight = (m * (x_g - x_teacher).abs()).flatten(1).sum(1) / m.flatten(1).sum(1)
            v = m * (x_s - x_teacher) / weight.clamp(min=1e-5)[:, None, None, None, None]
            torch.testing.assert_close(terms["loss/vsd"], v.square().flatten(1).mean(1), rtol=1e-5, atol=1e-9)
        else:
            error = m * (x_g - x_s).square() / sin.square()
            torch.testing.assert_close(
                terms["loss/fake_score"], error.flatten(1).mean(1), rtol=1e-5, atol=1e-9
            )


def test_no_loss_is_lost_at_pure_noise(networks):
    """At t = pi/2, where tan t is infinite, the critic's weight is 1."""

    class Pure(ShiftedTime):
        def draw(self, batch, schedule, noise):
            return torch.full((len(batch),), math.pi / 2, dtype=torch.float64)

    method = build(config(levels=Pure()), networks, SCHEDULE)
    for step in (STUDENT_STEP, CRITIC_STEP):
        total = method.losses(make_batch(), step, Noise(0, step, 0, 2))["total"]
        assert torch.isfinite(total).all() and float(total.detach().min()) > 0


def graded(method):
    return {role for role, net in method.roles.items() if any(p.grad is not None for p in net.parameters())}


def test_the_adversarial_gradient_reaches_fake_score_and_head_only_in_their_phase(networks):
    method = build(config(gan_weight=1.0, feature_blocks=(0, 1)), networks, SCHEDULE)
    batch = make_batch(2)
    for step in (STUDENT_STEP, CRITIC_STEP):
        for network in method.roles.values():
            network.zero_grad()
        terms = method.losses(batch, step, Noise(0, step, 0, 2))
        name = "loss/gan_generator" if step == STUDENT_STEP else "loss/gan_discriminator"
        terms[name].sum().backward()
        assert graded(method) == set(method.phase(step))
        assert [bool(call.features) for call in method.roles["teacher"].calls] == [False] * len(
            method.roles["teacher"].calls
        )
    # Critic phase: one pass serves the loss and the generated clip's features, one the real clip's.
    generated, real = method.roles["fake_score"].calls[-2:]
    assert (generated.features_only, real.features_only) == (False, True)
    assert generated.graph and real.graph, "real clips train the fake score's features too"
    assert torch.equal(generated.c_noise, real.c_noise)


def test_student_warm_up(networks):
    warm = build(config(student_warmup_steps=3), networks, SCHEDULE)
    assert [step for step in range(12) if warm.phase(step) == ("student",)] == [0, 1, 2, 5, 10]
    with pytest.raises(ValueError, match="exclude each other"):
        config(student_warmup_steps=1, critic_warmup_steps=1)
    with pytest.raises(ValueError, match="add up to 1"):
        config(condition_frames=(0.5, 0.2))
