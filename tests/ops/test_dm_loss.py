"""Distribution matching losses against the formulas of the papers, in fp64."""

import pytest
import torch

from cosmos_distill import ops
from cosmos_distill.ops import dm_loss, registry
from tests.ops.calls import assert_samples_may_be_empty

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


FORMS = ["TRANSFER1", "PREDICT25", "FASTGEN", "DMD2", "RCM"]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
@pytest.mark.parametrize("name", FORMS)
def test_direction_and_weight_are_the_score_difference_and_the_gradient(case, name, backend):
    form: dm_loss.VSDForm = getattr(dm_loss, name)
    dtype = torch.float64 if backend == "reference" else torch.float32
    student, teacher, fake, uncond = (t.detach().to(dtype) for t in case)
    mask = torch.tensor([[1, 0], [1, 1], [0, 1]])
    options = {"uncond": uncond, "guidance": 0.5, "frame_mask": mask, "backend": backend}
    direction, weight = ops.vsd_direction(student.requires_grad_(), teacher, fake, form, **options)
    assert direction.dtype == weight.dtype == dtype and not direction.requires_grad

    guided, m = teacher + 0.5 * (teacher - uncond), mask[:, None, :, None, None]
    away = (m * (student - guided).abs()).flatten(1).sum(1) / m.expand(SHAPE).flatten(1).sum(1)
    torch.testing.assert_close(direction, m * (fake - guided))
    torch.testing.assert_close(weight, 1 / (away + form.offset))

    loss = ops.vsd_loss(student, teacher, fake, form, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    count = student[0].numel() if form.reduction == "mean" else 1
    v = weight[:, None, None, None, None] * direction
    torch.testing.assert_close(gradient, 2 * form.factor / count * v)


def test_direction_and_weight_of_shards_are_those_of_the_whole(case):
    student, teacher, fake, _ = (t.detach() for t in case)
    whole, weight = ops.vsd_direction(student, teacher, fake)
    rows = [slice(0, 2), slice(2, 5)]
    shards = [[t[..., part, :] for t in (student, teacher, fake)] for part in rows]
    seen: list[torch.Tensor] = []

    def take(sums):
        seen.append(sums)
        return sums

    for shard in shards:
        ops.vsd_direction(*shard, sum_over_shards=take)
    for part, shard in zip(rows, shards, strict=True):
        direction, shared = ops.vsd_direction(*shard, sum_over_shards=lambda _: sum(seen[:2]))
        assert torch.equal(direction, whole[..., part, :])
        torch.testing.assert_close(shared, weight)


def test_a_sample_that_is_left_out_weighs_nothing(case):
    student, teacher, fake, _ = (t.detach() for t in case)
    fake[1, 0, 0, 0, 0] = float("nan")
    assert ops.vsd_direction(student, teacher, fake, dm_loss.DMD2)[1].eq(0).tolist() == [False, True, False]
    shown, weight = ops.vsd_direction(student, teacher, fake)
    assert shown[1].isnan().any() and weight.isfinite().all()


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


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
def test_nor_do_noise_levels_and_masks(case, backend):
    x, y, _, eps = (t.detach().float().requires_grad_() for t in case)
    levels = [SIGMA.float().requires_grad_() for _ in range(4)]
    mask = torch.ones(3, 2, requires_grad=True)
    where = ops.Preconditioned(eps, *levels[2:])
    ops.renoise(x, eps, levels[0], alpha=levels[1], backend=backend).sum().backward()
    rest = {"preconditioned": where, "frame_mask": mask, "backend": backend}
    ops.fake_score_loss(x, y, levels[0], **rest).sum().backward()
    ops.vsd_loss(x, y, y, **rest).sum().backward()
    assert x.grad is not None and all(t.grad is None for t in (y, eps, mask, *levels))


def test_narrow_inputs_are_averaged_in_fp32(case):
    narrow = [tensor.detach().bfloat16() for tensor in case]
    student, teacher, fake, eps = narrow
    assert ops.renoise(student, eps, SIGMA.float()).dtype == torch.float32
    assert ops.vsd_loss(student, teacher, fake).dtype == torch.float32
    expected = ops.vsd_loss(student.double(), teacher.double(), fake.double())
    torch.testing.assert_close(ops.vsd_loss(student, teacher, fake), expected.float())


def test_wrong_shapes_are_named(case):
    student, teacher, fake, eps = case
    with pytest.raises(ValueError, match="eps must be"):
        ops.renoise(student, eps[:, :1], SIGMA)
    with pytest.raises(ValueError, match="sigma must be"):
        ops.renoise(student, eps, SIGMA[:1])
    with pytest.raises(ValueError, match="x0_fake must be"):
        ops.vsd_loss(student, teacher, fake[:1])
    with pytest.raises(ValueError, match="'eps', 'x0' or 'trigflow'"):
        ops.fake_score_loss(fake, student, SIGMA, "v")


def test_a_backend_can_be_insisted_on(case):
    student, teacher, fake, _ = case
    picked = ops.vsd_loss(student, teacher, fake)
    assert torch.equal(ops.vsd_loss(student, teacher, fake, backend="reference"), picked)
    with pytest.raises(registry.BackendUnavailable, match="sdpa"):
        ops.vsd_loss(student, teacher, fake, backend="sdpa")


def test_preconditioned_predictions_are_network_outputs(case):
    student, teacher, fake, x_t = case
    skip, out = SIGMA.cos(), -SIGMA.sin()
    where = ops.Preconditioned(x_t, skip, out)
    x0_teacher, x0_fake = (
        skip[:, None, None, None, None] * x_t + out[:, None, None, None, None] * p for p in (teacher, fake)
    )
    got = ops.vsd_loss(student, teacher, fake, preconditioned=where)
    torch.testing.assert_close(got, ops.vsd_loss(student, x0_teacher, x0_fake))
    got = ops.fake_score_loss(fake, student, SIGMA, preconditioned=where)
    torch.testing.assert_close(got, ops.fake_score_loss(x0_fake, student, SIGMA))


@pytest.mark.parametrize("convention", ["added", "standard"])
def test_guidance_inside_the_loss_is_guidance_before_it(case, convention):
    student, teacher, fake, uncond = case
    guided = ops.combine_guidance(teacher, uncond, 3.0, convention)
    base = teacher if convention == "added" else uncond
    torch.testing.assert_close(guided, base + 3.0 * (teacher - uncond))
    added = 3.0 if convention == "added" else 2.0
    got = ops.vsd_loss(student, teacher, fake, uncond=uncond, guidance=added)
    torch.testing.assert_close(got, ops.vsd_loss(student, guided, fake))


@pytest.mark.parametrize(
    "form", [dm_loss.TRANSFER1, dm_loss.PREDICT25, dm_loss.FASTGEN, dm_loss.DMD2, dm_loss.RCM]
)
def test_published_forms(case, form):
    """Each written out as its authors have it, gradient by autograd."""
    student, teacher, fake, _ = case
    distance = mean((student.detach() - teacher).abs())
    normaliser = {
        dm_loss.TRANSFER1: distance.clamp(min=1e-5),
        dm_loss.PREDICT25: distance.clamp(min=1e-5),
        dm_loss.FASTGEN: distance + 1e-6,
        dm_loss.DMD2: distance,
        dm_loss.RCM: distance.clamp(min=1e-5),
    }[form]
    v = (fake - teacher) / normaliser[:, None, None, None, None]
    square = (student - (student - v).detach()).square().flatten(1)
    expected = square.sum(1) if form is dm_loss.RCM else square.mean(1)
    if form not in (dm_loss.PREDICT25, dm_loss.RCM):
        expected = 0.5 * expected
    loss = ops.vsd_loss(student, teacher, fake, form)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), student)[0], torch.autograd.grad(expected.sum(), student)[0]
    )


@pytest.mark.parametrize("broken", ["teacher", "fake"])
def test_dmd2_zeroes_a_sample_where_the_published_code_zeroes_elements(case, broken):
    """The same where the normaliser is NaN as well; else the published code keeps the rest of it."""
    student, teacher, fake, _ = case
    {"teacher": teacher, "fake": fake}[broken][1, 0, 0, 0, 0] = float("nan")
    v = (fake - teacher) / mean((student.detach() - teacher).abs())[:, None, None, None, None]
    published = torch.nan_to_num(v) / student[0].numel()
    loss = ops.vsd_loss(student, teacher, fake, dm_loss.DMD2)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient[[0, 2]], published[[0, 2]])
    assert not gradient[1].any() and published[1].any() == (broken == "fake")


def test_masked_frames_count_neither_in_the_normaliser_nor_in_the_gradient(case):
    student, teacher, fake, _ = case
    mask = torch.tensor([[1, 1], [0, 1], [0, 0]])
    loss = ops.vsd_loss(student, teacher, fake, frame_mask=mask)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    kept = ops.vsd_loss(student[1:2, :, 1:], teacher[1:2, :, 1:], fake[1:2, :, 1:])
    torch.testing.assert_close(loss[1:2], kept / 2)  # half of the sample's elements are given
    assert not gradient[1, :, 0].any() and not gradient[2].any() and loss[2] == 0
    error = ops.fake_score_loss(fake, student, SIGMA, frame_mask=mask)
    torch.testing.assert_close(
        error[1:2], ops.fake_score_loss(fake[1:2, :, 1:], student[1:2, :, 1:], SIGMA[1:2]) / 2
    )


def test_shards_agree_with_the_whole(case):
    student, teacher, fake, _ = case
    whole = ops.vsd_loss(student, teacher, fake)
    (gradient,) = torch.autograd.grad(whole.sum(), student)
    parts = [[t[:, :, i : i + 1] for t in (student, teacher, fake)] for i in range(2)]
    sums: list[torch.Tensor] = []
    for part in parts:
        ops.vsd_loss(*part, sum_over_shards=lambda s: sums.append(s) or s)
    losses = [ops.vsd_loss(*part, sum_over_shards=lambda _: sums[0] + sums[1]) for part in parts]
    for loss in losses:
        torch.testing.assert_close(loss, whole)
    (sharded,) = torch.autograd.grad(sum(loss.sum() for loss in losses), student)
    torch.testing.assert_close(sharded, gradient)


def test_a_form_may_silence_a_sample_with_a_nan(case):
    student, teacher, fake, _ = case
    fake[1, 0, 0, 0, 0] = float("nan")
    loss = ops.vsd_loss(student, teacher, fake, dm_loss.PREDICT25)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss[1] == 0 and not gradient[1].any() and gradient[[0, 2]].all() and loss.isfinite().all()


def test_silenced_samples_are_told_from_those_with_nothing_to_learn(case):
    student, teacher, fake, _ = case
    fake[0] = teacher[0]
    fake[1, 0, 0, 0, 0] = float("nan")
    loss, zeroed = ops.vsd_loss(student, teacher, fake, dm_loss.PREDICT25, return_zeroed=True)
    assert (loss == 0).tolist() == [True, True, False]
    assert zeroed.tolist() == [0.0, 1.0, 0.0] and zeroed.dtype == loss.dtype and not zeroed.requires_grad
    loss, zeroed = ops.vsd_loss(student, teacher, fake, return_zeroed=True)
    assert loss.isnan().tolist() == [False, True, False] and not zeroed.any()


def test_trigflow_weight_is_the_velocity_error(case):
    student, _, fake, eps = case
    t = SIGMA.atan()[:, None, None, None, None]
    x_t = t.cos() * student.detach() + t.sin() * eps
    torch.testing.assert_close(
        ops.renoise(student.detach(), eps, t.sin().flatten(), alpha=t.cos().flatten()), x_t
    )
    velocity, predicted = ((t.cos() * x_t - x0) / t.sin() for x0 in (student.detach(), fake))
    loss = ops.fake_score_loss(fake, student, SIGMA, "trigflow")
    torch.testing.assert_close(loss, mean((velocity - predicted).square()))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
def test_samples_may_be_empty(backend):
    assert_samples_may_be_empty(backend)
