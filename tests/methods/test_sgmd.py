"""SGMD: the student's loss against plain autograd, in fp64; phases; what is refused."""

import pytest
import torch

from cosmos_distill.config import FewStep, Guidance, TrigFlow
from cosmos_distill.diffusion import TrigFlowSchedule, combine
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.base import draw_given_frames, unit_noise
from cosmos_distill.methods.levels import ShiftedTime
from cosmos_distill.methods.sgmd import SGMD
from tests.methods.fake_network import make_batch

STUDENT_STEP, CRITIC_STEP = 0, 1
RECTIFIED = TrigFlowSchedule(TrigFlow("rectified_flow", sigma_data=1.0))


def double(networks):
    return lambda role: networks(role).double()


def four_steps(**switches):
    return SGMD(
        sampler=FewStep(steps=4), levels=ShiftedTime(), guidance=Guidance(3.0, "added"),
        fake_score_weighting="trigflow", **switches,
    )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", ["edm", "rectified flow"])
def test_student_phase_in_fp64_is_the_published_one(networks, schedule, family, masked):
    settings = {"correction_weight": 0.3, "mask_given_frames": masked}
    if family == "edm":
        method = build(SGMD(guidance=Guidance(3.0, "added"), **settings), double(networks), schedule)
    else:
        schedule = RECTIFIED
        method = build(four_steps(condition_frames=(0.0, 1.0), **settings), double(networks), schedule)
    batch, noise = make_batch(dtype=torch.float64), Noise(0, STUDENT_STEP, 0, 2)
    terms = method.losses(batch, STUDENT_STEP, noise)

    condition = draw_given_frames(batch, noise, method.config.condition_frames)
    t = method.config.levels.draw(batch, schedule, noise)
    alpha, sigma = (c.double()[:, None, None, None, None] for c in schedule.noising(t))
    x_g = method.generate(batch, condition, noise)
    x_t = alpha * x_g + sigma * unit_noise(batch, noise, "renoise")
    fake = method.denoiser("fake_score")(x_t, t, condition)
    with torch.no_grad():
        teacher = combine(
            method.denoiser("teacher")(x_t, t, condition),
            method.denoiser("teacher")(x_t, t, condition.unconditional("kept")),
            method.config.guidance,
        )
    given = condition.given_mask(batch.latents.shape[2])
    kept = torch.ones_like(x_g) * (~given if masked and given is not None else 1)
    size = ((x_g - teacher).abs() * kept).sum((1, 2, 3, 4)) / kept.sum((1, 2, 3, 4))
    fisher = (0.5 * (fake - teacher) ** 2 * kept).sum((1, 2, 3, 4)) / kept.sum((1, 2, 3, 4)) / size.detach()
    # In rectified flow's coordinates x_t / (alpha + sigma) has the share s of noise.
    slope = ((fake - x_g) * (alpha + sigma) / sigma).detach()
    correction = (slope * fake * kept).sum((1, 2, 3, 4)) / kept.sum((1, 2, 3, 4))
    torch.testing.assert_close(terms["loss/fisher"], fisher)
    torch.testing.assert_close(
        terms["loss/correction"], 0.5 * (slope**2 * kept).sum((1, 2, 3, 4)) / kept.sum((1, 2, 3, 4))
    )
    torch.testing.assert_close(terms["total"], terms["loss/fisher"] - 0.3 * terms["loss/correction"])
    parameters = list(method.roles["student"].parameters())
    wanted = torch.autograd.grad((fisher - 0.3 * correction).sum(), parameters)
    found = torch.autograd.grad(terms["total"].sum(), parameters)
    torch.testing.assert_close(found, wanted)
    assert all(g.abs().max() > 0 for g in found)


def test_critics_phase_is_dmd2s_and_each_follows_the_other(networks, schedule):
    method = build(four_steps(), networks, RECTIFIED)
    assert [method.phase(step) for step in range(4)] == [("student",), ("fake_score",)] * 2
    terms = method.losses(make_batch(), CRITIC_STEP, Noise(0, CRITIC_STEP, 0, 2))
    assert set(terms) == {"loss/fake_score", "total"} and set(method.roles) == {
        "student", "teacher", "fake_score",
    }  # fmt: skip


def test_passes_of_a_step_and_which_have_a_graph(networks, schedule):
    """One of the fake score network, with a graph to its input and none to its weights."""
    method = build(SGMD(), networks, schedule)
    terms = method.losses(make_batch(), STUDENT_STEP, Noise(0, STUDENT_STEP, 0, 2))
    terms["total"].sum().backward()
    calls = {role: [(call.graph, call.grad) for call in net.calls] for role, net in method.roles.items()}
    assert calls == {
        "student": [(True, True)],
        "teacher": [(False, False)] * 2,
        "fake_score": [(True, False)],
    }
    assert all(p.grad is None for p in method.roles["fake_score"].parameters())
    assert all(p.grad is not None for p in method.roles["student"].parameters())


@pytest.mark.parametrize(
    ("switches", "text"),
    [
        ({"gan_weight": 0.1}, "no discriminator"),
        ({"ladd": True}, "another loss than SGMD's"),
        ({"recon_loss_only": True}, "another loss than SGMD's"),
        ({"ida_decay": 1.0}, "ida_decay"),
    ],
)
def test_what_does_not_go_together_is_refused(switches, text):
    with pytest.raises(ValueError, match=text):
        SGMD(**switches)


def test_the_fake_score_follows_where_it_is_to(networks, schedule):
    method = build(SGMD(ida_decay=0.97), networks, schedule)
    assert method.alignments(("student",)) == {"fake_score": ("student", 0.97)}
    assert not method.alignments(("fake_score",)) and not build(SGMD(), networks, schedule).alignments(
        ("student",)
    )
