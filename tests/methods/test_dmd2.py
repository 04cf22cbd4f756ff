"""DMD2: formulas, gradient routing, switches."""

import math

import pytest
import torch

from cosmos_distill.config import Guidance, Optim
from cosmos_distill.diffusion import combine
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.base import draw_given_frames, unit_noise
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.levels import Grid
from tests.methods.fake_network import FakeNetwork, make_batch

STUDENT_STEP, CRITIC_STEP = 0, 1


def method_of(networks, schedule, **switches):
    return build(DMD2(head_width=16, **switches), networks, schedule)


def run(method, step, count=2, dtype=torch.float32):
    batch = make_batch(count, dtype=dtype)
    return batch, method.losses(batch, step, Noise(0, step, 0, count))


def graded(method):
    return {
        role
        for role, network in method.roles.items()
        if any(p.grad is not None for p in network.parameters())
    }


def all_graded(method, role):
    return all(p.grad is not None for p in method.roles[role].parameters())


def test_published_defaults():
    config = DMD2()
    assert config.guidance == Guidance(5.0, "added") and config.gan_weight == 1e-3
    assert config.student_update_freq == 5 and config.critic_warmup_steps == 0
    assert config.student == Optim(lr=5e-7, weight_decay=0.01, clip_norm=10.0)
    assert config.fake_score == config.discriminator == Optim(lr=5e-7, weight_decay=0.01)


def test_turns(networks, schedule):
    method = method_of(networks, schedule)
    critics = ("fake_score", "discriminator")
    assert [method.phase(step) for step in range(6)] == [("student",), *[critics] * 4, ("student",)]
    warm = method_of(networks, schedule, critic_warmup_steps=7)
    assert [step for step in range(16) if warm.phase(step) == ("student",)] == [10, 15]


@pytest.mark.parametrize(
    "switches, roles",
    [
        ({}, {"student", "teacher", "fake_score", "discriminator"}),
        ({"gan_weight": 0.0}, {"student", "teacher", "fake_score"}),
        ({"ladd": True}, {"student", "teacher", "discriminator"}),
        ({"ladd": True, "gan_weight": 0.0}, {"student", "teacher", "discriminator"}),
        ({"recon_loss_only": True}, {"student"}),
    ],
)
def test_each_phase_touches_its_own_roles_only(networks, schedule, switches, roles):
    method = method_of(networks, schedule, **switches)
    assert set(method.roles) == roles
    assert set(method.trainable) == roles - {"teacher"}
    for step in (STUDENT_STEP, CRITIC_STEP, 5):
        for network in method.roles.values():
            network.zero_grad()
        _, terms = run(method, step)
        terms["total"].sum().backward()
        assert graded(method) == set(method.phase(step))
        assert all(all_graded(method, role) for role in method.phase(step))


def test_a_stray_flag_does_not_leak_a_gradient(networks, schedule):
    method = method_of(networks, schedule)
    for network in method.roles.values():
        network.requires_grad_(True)
    run(method, CRITIC_STEP)[1]["total"].sum().backward()
    assert graded(method) == {"fake_score", "discriminator"}
    assert not method.roles["teacher"].training and method.roles["student"].training


def test_student_phase_in_fp64_is_the_papers(networks, schedule):
    def double(role):
        return networks(role).double()

    guidance = Guidance(5.0, "added")
    method = method_of(double, schedule, guidance=guidance, recon_loss_weight=0.3)
    batch, terms = run(method, STUDENT_STEP, dtype=torch.float64)
    noise = Noise(0, STUDENT_STEP, 0, 2)
    condition = draw_given_frames(batch, noise, method.config.condition_frames)
    sigma = method.config.levels.draw(batch, schedule, noise)
    wide = sigma[:, None, None, None, None]
    eps = unit_noise(batch, noise, "renoise")
    x_g = method.sample("student", unit_noise(batch, noise, "student"), condition).detach().requires_grad_()
    x_t = x_g + wide * eps
    negative = condition.unconditional("kept")
    with torch.no_grad():
        predict = {role: method.denoiser(role) for role in ("teacher", "fake_score")}
        eps_c = (x_t - predict["teacher"](x_t, sigma, condition)) / wide
        eps_u = (x_t - predict["teacher"](x_t, sigma, negative)) / wide
        eps_fake = (x_t - predict["fake_score"](x_t, sigma, condition)) / wide
        eps_teacher = combine(eps_c, eps_u, guidance)
        normaliser = (eps - eps_teacher).abs().flatten(1).mean(1)
        v = (eps_teacher - eps_fake) / normaliser[:, None, None, None, None]
    vsd = 0.5 * (x_g - (x_g - v).detach()).square().flatten(1).mean(1)
    features = predict["teacher"].features(x_t, sigma, condition, (1,))
    gan = torch.nn.functional.softplus(-method.roles["discriminator"](features)).mean(1)
    recon = (x_g - batch.latents).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["loss/vsd"], vsd)
    torch.testing.assert_close(terms["loss/gan_generator"], gan)
    torch.testing.assert_close(terms["loss/recon"], recon)
    torch.testing.assert_close(terms["total"], vsd + 1e-3 * gan + 0.3 * recon)
    # The gradient that arrives at the student's sample is v/N plus the two others'.
    others = torch.autograd.grad((1e-3 * gan + 0.3 * recon).sum(), x_g)[0]
    expected = others + v / x_g[0].numel()
    parameters = list(method.roles["student"].parameters())
    again = method.sample("student", unit_noise(batch, noise, "student"), condition)
    by_chain = torch.autograd.grad((again * expected).sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad(terms["total"].sum(), parameters), by_chain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_critic_phase_is_the_papers(networks, schedule, prediction):
    def double(role):
        return networks(role).double()

    method = method_of(double, schedule, fake_score_weighting=prediction)
    batch, terms = run(method, CRITIC_STEP, dtype=torch.float64)
    noise = Noise(0, CRITIC_STEP, 0, 2)
    condition = draw_given_frames(batch, noise, method.config.condition_frames)
    sigma = method.config.levels.draw(batch, schedule, noise)
    wide = sigma[:, None, None, None, None]
    eps = unit_noise(batch, noise, "renoise")
    with torch.no_grad():
        x_g = method.sample("student", unit_noise(batch, noise, "student"), condition)
        x_t, x_r = x_g + wide * eps, batch.latents + wide * unit_noise(batch, noise, "renoise_real")
        eps_fake = (x_t - method.denoiser("fake_score")(x_t, sigma, condition)) / wide
        error = (eps - eps_fake) if prediction == "eps" else (eps - eps_fake) * wide
        logits = [
            method.roles["discriminator"](method.denoiser("teacher").features(x, sigma, condition, (1,)))
            for x in (x_t, x_r)
        ]
    torch.testing.assert_close(terms["loss/fake_score"], error.square().flatten(1).mean(1))
    softplus = torch.nn.functional.softplus
    adversarial = (softplus(logits[0]) + softplus(-logits[1])).mean(1)
    torch.testing.assert_close(terms["loss/gan_discriminator"], adversarial)
    torch.testing.assert_close(terms["total"], terms["loss/fake_score"] + adversarial)


def test_terms_that_are_off_are_absent(networks, schedule):
    def keys(step, **switches):
        return set(run(method_of(networks, schedule, **switches), step)[1]) - {"total"}

    assert keys(0) == {"loss/vsd", "loss/gan_generator"}
    assert keys(1) == {"loss/fake_score", "loss/gan_discriminator"}
    assert keys(0, gan_weight=0.0) == {"loss/vsd"} and keys(1, gan_weight=0.0) == {"loss/fake_score"}
    assert keys(0, ladd=True) == {"loss/gan_generator"} and keys(1, ladd=True) == {"loss/gan_discriminator"}
    assert keys(0, ladd=True, recon_loss_weight=1.0) == {"loss/gan_generator", "loss/recon"}
    assert keys(1, recon_loss_only=True) == {"loss/recon"}
    assert keys(0, vsd_form="predict2.5") == {"loss/vsd", "loss/gan_generator", "nonfinite/vsd"}


@pytest.mark.parametrize("role", ["teacher", "fake_score"])
def test_a_sample_left_out_for_a_nan_is_counted(networks, schedule, role):
    def student_step(spoil):
        method = method_of(networks, schedule, vsd_form="predict2.5", gan_weight=0.0)

        def hook(module, args, output):
            output[1] = float("nan")

        if spoil:
            method.roles[role].register_forward_hook(hook)
        _, terms = run(method, STUDENT_STEP, count=3)
        (terms["total"][[0, 2]] if not spoil else terms["total"]).sum().backward()
        return terms, [p.grad for p in method.roles["student"].parameters()]

    (terms, gradients), (_, wanted) = student_step(spoil=True), student_step(spoil=False)
    assert terms["nonfinite/vsd"].tolist() == [0, 1, 0] and terms["nonfinite/vsd"].dtype == torch.float32
    assert torch.equal(terms["total"], terms["loss/vsd"]) and terms["total"].isfinite().all()
    torch.testing.assert_close(gradients, wanted)


def test_ladd_ignores_the_gan_weight(networks, schedule):
    _, terms = run(method_of(networks, schedule, ladd=True, gan_weight=1e-3), STUDENT_STEP)
    assert torch.equal(terms["total"], terms["loss/gan_generator"])


def calls(method, role):
    return [(c.graph, bool(c.features), c.features_only) for c in method.roles[role].calls]


def test_only_what_needs_a_graph_keeps_one(networks, schedule):
    plain, early = (False, False, False), (False, True, True)
    method = method_of(networks, schedule)
    run(method, STUDENT_STEP)
    assert calls(method, "student") == [(True, False, False)]
    assert calls(method, "teacher") == [(True, True, False), plain], "features and prediction in one pass"
    assert calls(method, "fake_score") == [plain]
    method = method_of(networks, schedule)
    run(method, CRITIC_STEP)
    assert calls(method, "student") == [plain]
    assert calls(method, "teacher") == [early, early]
    assert calls(method, "fake_score") == [(True, False, False)]
    method = method_of(networks, schedule, gan_weight=0.0)
    run(method, STUDENT_STEP)
    assert calls(method, "teacher") == [plain, plain]
    method = method_of(networks, schedule, ladd=True)
    run(method, STUDENT_STEP)
    assert calls(method, "teacher") == [(True, True, True)]


def test_guidance_uses_the_negative_prompt_and_costs_nothing_when_off(networks, schedule):
    method = method_of(networks, schedule)
    batch, _ = run(method, STUDENT_STEP)
    texts = [call.text for call in method.roles["teacher"].calls]
    assert torch.equal(texts[0], batch.conditioning.text) and torch.equal(
        texts[1], batch.conditioning.negative_text
    )
    for off in (Guidance(0.0, "added"), Guidance(1.0, "standard")):
        method = method_of(networks, schedule, guidance=off)
        run(method, STUDENT_STEP)
        assert len(method.roles["teacher"].calls) == 1


def test_noise_levels_have_the_published_range(schedule):
    batch = make_batch(3000, shape=(3, 16, 1, 1))
    noise = Noise(0, 0, 0, 3000)
    sigma = Grid().draw(batch, schedule, noise)
    assert 0.0126 < float(sigma.min()) < 0.014 and 270 < float(sigma.max()) < 286.7
    assert float(sigma.median()) == pytest.approx(10.0, rel=0.15)
    lower = Grid(adjust_video_noise=False).draw(batch, schedule, noise)
    torch.testing.assert_close(sigma, 4 * lower)
    logs = Grid("inference").draw(batch, schedule, noise).log()
    low, high = math.log(4 * 2e-4), math.log(4 * 80)
    assert float(logs.mean()) == pytest.approx((low + high) / 2, abs=0.3), "log-uniform"
    assert float(logs.std()) == pytest.approx(0.96 * (high - low) / math.sqrt(12), rel=0.05)


def test_given_frames_pull_neither_student_nor_fake_score(networks, schedule, batch):
    method = method_of(networks, schedule, gan_weight=0.0)
    condition = batch.given(torch.tensor([3, 3]))  # all of them
    noise = Noise(0, 0, 0, 2)
    assert not method.student_losses(batch, condition, noise)["loss/vsd"].any()
    assert not method.critic_losses(batch, condition, noise)["loss/fake_score"].any()


def test_vsd_vanishes_when_fake_score_and_teacher_agree(networks, schedule):
    method = method_of(networks, schedule, guidance=Guidance(0.0), gan_weight=0.0)
    _, terms = run(method, STUDENT_STEP)
    assert float(terms["loss/vsd"].detach().abs().max()) < 1e-9


@pytest.mark.parametrize("step", [STUDENT_STEP, CRITIC_STEP])
def test_micro_batches_add_up_in_every_gradient(networks, schedule, step):
    def gradients(parts):
        method = method_of(networks, schedule)
        for first, count in parts:
            terms = method.losses(make_batch(count, first), step, Noise(0, step, first, count))
            (terms["total"].sum() / 6).backward()
        return [p.grad for role in method.phase(step) for p in method.roles[role].parameters()]

    for whole, split in zip(gradients([(0, 6)]), gradients([(0, 1), (1, 2), (3, 3)]), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-6)


def test_bf16_networks_give_fp32_losses(schedule):
    method = method_of(lambda role: FakeNetwork(seed=role == "student").bfloat16(), schedule)
    assert {p.dtype for p in method.roles["discriminator"].parameters()} == {torch.bfloat16}
    for step in (STUDENT_STEP, CRITIC_STEP):
        assert {term.dtype for term in run(method, step)[1].values()} == {torch.float32}


@pytest.mark.parametrize("head", ["conv3d", "conv2d", "attention", "spatial_temporal"])
def test_every_head_trains(networks, schedule, head):
    method = method_of(networks, schedule, head=head, feature_blocks=(0, 1))
    run(method, CRITIC_STEP)[1]["total"].sum().backward()
    assert method.roles["discriminator"].blocks == (0, 1)
    assert all_graded(method, "discriminator")


def test_the_seed_decides_the_discriminator(networks, schedule):
    first, same, other = (
        build(DMD2(head_width=16), networks, schedule, seed=seed).roles["discriminator"].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_impossible_settings_are_refused(networks, schedule):
    for switches, message in (
        ({"student_update_freq": 0}, "student_update_freq must be an integer from 1"),
        ({"student_update_freq": 1}, "never trains the critics"),
        ({"gan_weight": -1.0}, "gan_weight must be a finite number from 0"),
        ({"ladd": True, "recon_loss_only": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            DMD2(**switches)
    with pytest.raises(ValueError, match=r"numbered 0\.\.1"):
        method_of(networks, schedule, feature_blocks=(2,))
