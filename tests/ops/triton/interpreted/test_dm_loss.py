from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import dm_loss
from tests.ops.calls import assert_samples_may_be_empty
from tests.ops.tolerance import assert_as_good_as_torch, poisoned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPE = (2, 3, 5, 17, 23)  # a sample is more than one stretch of 4096


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS = [draw(*SHAPE, seed=i) for i in range(5)]
SIGMA, SKIP, OUT = (draw(2, seed=10 + i).abs() + 0.5 for i in range(3))
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
WEIGHT = [torch.tensor([1.0, -0.5])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_vsd(guided: bool, preconditioned: bool, masked: bool, dtype: torch.dtype):
    student, teacher, fake, uncond, x_t = (t.to(dtype) for t in LATENTS)

    def operator(x: Tensor, backend: str) -> Tensor:
        wide = x.dtype
        options: dict[str, Any] = {"frame_mask": MASK} if masked else {}
        if guided:
            options |= {"uncond": uncond.to(wide), "guidance": 2.5}
        if preconditioned:
            options["preconditioned"] = ops.Preconditioned(x_t.to(wide), SKIP, OUT)
        return ops.vsd_loss(x, teacher.to(wide), fake.to(wide), backend=backend, **options)

    assert_as_good_as_torch([(operator, (student,), WEIGHT)], "triton", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_fake_score(preconditioned: bool, masked: bool, dtype: torch.dtype):
    student, fake, x_t = (t.to(dtype) for t in LATENTS[:3])

    def operator(x: Tensor, backend: str) -> Tensor:
        wide = x.dtype
        options: dict[str, Any] = {"frame_mask": MASK} if masked else {}
        if preconditioned:
            options["preconditioned"] = ops.Preconditioned(x_t.to(wide), SKIP, OUT)
        return ops.fake_score_loss(x, student.to(wide), SIGMA, backend=backend, **options)

    assert_as_good_as_torch([(operator, (fake,), WEIGHT)], "triton", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [None, SKIP])
def test_renoise(alpha: Tensor | None, dtype: torch.dtype):
    x0, eps = (t.to(dtype) for t in LATENTS[:2])

    def operator(x: Tensor, backend: str) -> Tensor:
        return ops.renoise(x, eps.to(x.dtype), SIGMA, alpha=alpha, backend=backend)

    assert_as_good_as_torch([(operator, (x0,), LATENTS[2:3])], "triton", dtype)


def test_latents_of_any_shape_and_no_samples_at_all():
    for shape in ((3, 7), (1, 1), (0, 4)):
        student, teacher, fake = (draw(*shape, seed=i) for i in range(3))
        student.requires_grad_()
        got, want = (ops.vsd_loss(student, teacher, fake, backend=b) for b in ("triton", "reference"))
        torch.testing.assert_close(got, want)


def test_a_silenced_sample_has_no_gradient_and_the_others_theirs():
    student, teacher, fake, *_ = (t.clone() for t in LATENTS)
    fake[1, 0, 0, 0, 0] = float("nan")
    student.requires_grad_()
    with poisoned():
        loss = ops.vsd_loss(student, teacher, fake, dm_loss.PREDICT25, backend="triton")
        (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss[1] == 0 and not gradient[1].any() and gradient[0].all() and loss.isfinite().all()


def test_coefficients_may_be_fp64():
    student, teacher, fake, x_t, _ = LATENTS
    results = [
        ops.vsd_loss(
            student,
            teacher,
            fake,
            preconditioned=ops.Preconditioned(x_t, SKIP.double(), OUT.double()),
            backend=backend,
        )
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*results)


def test_samples_may_be_empty():
    assert_samples_may_be_empty("triton")
