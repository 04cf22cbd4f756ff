"""Distribution matching losses against the formulas of the papers, in fp64."""

import pytest
import torch

from cosmos_distill import ops
from cosmos_distill.ops import registry

SHAPE = (3, 4, 2, 5, 6)
SIGMA = torch.tensor([0.0126, 1.3, 280.0], dtype=torch.float64)
WIDE = SIGMA[:, None, None, None, None]


def draw(seed):
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean(x):
    return x.flatten(1).mean(1)


@pytest.fixture
def case():
    student = (0.5 * draw(0)).requires_grad_()
    return student, 0.5 * draw(1), 0.5 * draw(2), draw(3)


def test_renoise_adds_noise_at_each_samples_level(case):
    student, _, _, eps = case
    x_t = ops.renoise(student, eps, SIGMA)
    torch.testing.assert_close(x_t, student + WIDE * eps)
    (gradient,) = torch.autograd.grad(x_t.sum(), student)
    assert torch.equal(gradient, torch.ones_like(student))


def test_vsd_gradient_is_v_over_n_in_eps_space(case):
    student, teacher, fake, eps = case
    x_t = student.detach() + WIDE * eps
    eps_teacher, eps_fake = (x_t - teacher) / WIDE, (x_t - fake) / WIDE
    # Transfer1: gradient d * w with d the score difference and w = sigma / mean |eps - eps_T|.
    difference = (-eps_fake / WIDE) - (-eps_teacher / WIDE)
    weight = SIGMA / mean((eps - eps_teacher).abs())
    v = difference * weight[:, None, None, None, None]
    loss = ops.vsd_loss(student, teacher, fake)
    torch.testing.assert_close(loss, 0.5 * mean(v.square()))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, v / student[0].numel())


def test_vsd_normaliser_is_per_sample(case):
    student, teacher, fake, _ = case
    whole = ops.vsd_loss(student, teacher, fake)
    for sample in range(3):
        one = slice(sample, sample + 1)
        torch.testing.assert_close(whole[one], ops.vsd_loss(student[one], teacher[one], fake[one]))
    scaled = ops.vsd_loss(10 * student, 10 * teacher, 10 * fake)
    torch.testing.assert_close(scaled, whole, msg="the normaliser makes the loss scale-free")


def test_vsd_stays_finite_where_the_teacher_agrees_exactly(case):
    student, _, fake, _ = case
    loss = ops.vsd_loss(student, student.detach(), fake)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, (fake - student.detach()) / 1e-5 / student[0].numel())
    still = ops.vsd_loss(student, student.detach(), student.detach())
    assert torch.equal(still, torch.zeros_like(still))


def test_vsd_does_not_hide_a_nan(case):
    student, teacher, fake, _ = case
    fake[1, 0, 0, 0, 0] = float("nan")
    loss = ops.vsd_loss(student, teacher, fake)
    assert loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_fake_score_loss_is_the_denoising_error(case, prediction):
    student, _, fake, eps = case
    fake.requires_grad_()
    x_t = student.detach() + WIDE * eps
    eps_fake = (x_t - fake) / WIDE
    if prediction == "eps":
        expected = mean((eps - eps_fake).square())
    else:
        expected = mean(((x_t - WIDE * eps) - (x_t - WIDE * eps_fake)).square())
    loss = ops.fake_score_loss(fake, student, SIGMA, prediction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), fake)[0], torch.autograd.grad(expected.sum(), fake)[0]
    )


def test_only_the_documented_input_gets_a_gradient(case):
    student, teacher, fake, _ = case
    for tensor in (teacher, fake):
        tensor.requires_grad_()
    ops.vsd_loss(student, teacher, fake).sum().backward()
    assert student.grad is not None and teacher.grad is None and fake.grad is None
    student.grad = None
    ops.fake_score_loss(fake, student, SIGMA).sum().backward()
    assert fake.grad is not None and student.grad is None


def test_narrow_inputs_are_averaged_in_fp32(case):
    narrow = [tensor.detach().bfloat16() for tensor in case]
    student, teacher, fake, eps = narrow
    assert ops.renoise(student, eps, SIGMA.float()).dtype == torch.float32
    assert ops.vsd_loss(student, teacher, fake).dtype == torch.float32
    expected = ops.vsd_loss(student.double(), teacher.double(), fake.double())
    torch.testing.assert_close(ops.vsd_loss(student, teacher, fake), expected.float())


def test_wrong_shapes_are_named(case):
    student, teacher, fake, eps = case
    with pytest.raises(ValueError, match="eps must have shape"):
        ops.renoise(student, eps[:, :1], SIGMA)
    with pytest.raises(ValueError, match="sigma must be"):
        ops.renoise(student, eps, SIGMA[:1])
    with pytest.raises(ValueError, match="x0_fake must have shape"):
        ops.vsd_loss(student, teacher, fake[:1])
    with pytest.raises(ValueError, match="'eps' or 'x0'"):
        ops.fake_score_loss(fake, student, SIGMA, "v")


def test_a_backend_can_be_insisted_on(case):
    student, teacher, fake, _ = case
    picked = ops.vsd_loss(student, teacher, fake)
    assert torch.equal(ops.vsd_loss(student, teacher, fake, backend="reference"), picked)
    with pytest.raises(registry.BackendUnavailable, match="sdpa"):
        ops.vsd_loss(student, teacher, fake, backend="sdpa")
