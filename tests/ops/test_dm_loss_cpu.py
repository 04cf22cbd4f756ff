"""The compiled distribution matching losses against fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import dm_loss
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

pytestmark = pytest.mark.compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.tuples(*(st.integers(1, n) for n in (3, 3, 3, 9, 37)))


def latents(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).to(dtype) for _ in range(5)]


def settings_of(shape: tuple[int, ...], x_t: Tensor, raw: bool, masked: bool) -> dict[str, Any]:
    batch = shape[0]
    where = ops.Preconditioned(x_t, torch.linspace(0.2, 0.9, batch), torch.linspace(-0.8, -0.3, batch))
    mask = torch.arange(batch * shape[2]).reshape(batch, shape[2]) % 3 != 1
    return {"preconditioned": where if raw else None, "frame_mask": mask if masked else None}


@settings(max_examples=40, deadline=None)
@given(SHAPES, *(st.booleans(),) * 3, st.sampled_from(DTYPES), st.integers(0, 1000))
def test_vsd(shape, guided, raw, masked, dtype, seed):
    def case(seed: int) -> Case:
        student, teacher, fake, uncond, x_t = latents(shape, seed, dtype)
        options = settings_of(shape, x_t, raw, masked)
        if guided:
            options |= {"uncond": uncond, "guidance": 3.0}

        def operator(x: Tensor, backend: str) -> Tensor:
            return ops.vsd_loss(x, teacher, fake, backend=backend, **options)

        # Far from the teacher: the mean distance of a few numbers would come near zero, and divides the loss.
        return operator, [student + 20 * student.sign()], [torch.linspace(0.5, 2, shape[0])]

    assert_as_good_as_torch(draws(case, seed), dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(SHAPES, *(st.booleans(),) * 2, st.sampled_from(DTYPES), st.integers(0, 1000))
def test_fake_score(shape, raw, masked, dtype, seed):
    def case(seed: int) -> Case:
        student, fake, x_t, *_ = latents(shape, seed, dtype)
        options = settings_of(shape, x_t, raw, masked)
        sigma = torch.linspace(0.3, 2, shape[0])

        def operator(x: Tensor, backend: str) -> Tensor:
            return ops.fake_score_loss(x, student, sigma, backend=backend, **options)

        return operator, [fake], [torch.linspace(0.5, 2, shape[0])]

    assert_as_good_as_torch(draws(case, seed), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_renoise(scaled: bool, dtype: torch.dtype):
    x0, eps, grad, *_ = latents((3, 5, 7), 0, dtype)
    sigma = torch.tensor([0.0126, 1.3, 280.0])
    alpha = sigma.cos() if scaled else None

    def operator(x0: Tensor, backend: str) -> Tensor:
        return ops.renoise(x0, eps, sigma, alpha=alpha, backend=backend)

    assert operator(x0, "cpu").dtype == torch.float32
    assert_as_good_as_torch([(operator, [x0], [grad])], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [160, 161])
def test_latents_that_exceed_the_caches(width: int, dtype: torch.dtype):
    """Results this large are streamed past the caches, unless frames start anywhere."""
    shape = (2, 16, 5 if dtype is torch.float32 else 10, 89, width)
    student, teacher, fake, uncond, x_t = latents(shape, 0, dtype)
    options = settings_of(shape, x_t, True, True)

    def vsd(x: Tensor, backend: str) -> Tensor:
        return ops.vsd_loss(x, teacher, fake, uncond=uncond, guidance=5.0, backend=backend, **options)

    def fake_score(x: Tensor, backend: str) -> Tensor:
        return ops.fake_score_loss(x, student, torch.ones(2), backend=backend, **options)

    assert_as_good_as_torch([(vsd, [student], [torch.ones(2)])], dtype=dtype)
    assert_as_good_as_torch([(fake_score, [fake], [torch.ones(2)])], dtype=dtype)


def test_bit_equal_for_any_number_of_threads():
    shape = (2, 4, 3, 60, 50)
    student, teacher, fake, _, x_t = latents(shape, 0, torch.float32)
    options = settings_of(shape, x_t, True, True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, p = student.requires_grad_(), fake.detach().requires_grad_()
            vsd = ops.vsd_loss(x, teacher, fake, backend="cpu", **options)
            error = ops.fake_score_loss(p, student, torch.ones(2), backend="cpu", **options)
            grads = torch.autograd.grad(vsd.sum() + error.sum(), (x, p))
            results.append([vsd, error, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_silenced_sample_has_no_gradient_even_where_it_is_nan():
    student, teacher, fake, *_ = latents((3, 2, 2, 5, 6), 0, torch.float32)
    fake[1, 0, 0, 0, 0] = float("nan")
    student.requires_grad_()
    loss, zeroed = ops.vsd_loss(student, teacher, fake, dm_loss.DMD2, return_zeroed=True, backend="cpu")
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert zeroed.tolist() == [0.0, 1.0, 0.0] and zeroed.dtype == torch.float32
    assert loss[1] == 0 and not gradient[1].any() and gradient[[0, 2]].all()
    shown = ops.vsd_loss(student, teacher, fake, backend="cpu")
    assert shown.isnan().tolist() == [False, True, False]
