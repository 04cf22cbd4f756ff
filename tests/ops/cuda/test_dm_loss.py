"""csrc/dm_loss.cu, emulated, through the public operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import dm_loss
from tests.ops.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("emulated_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A sample that packs of 16 bytes divide; one that they do not; one of more than one chunk.
SHAPES = [(2, 4, 3, 4, 8), (3, 2, 3, 3, 5), (1, 5, 2, 41, 83)]


def latents(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=draw) * 0.5).to(dtype) for _ in range(count)]


def levels(batch: int) -> Tensor:
    return torch.linspace(0.3, 1.2, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_renoise(shape: tuple[int, ...], dtype: torch.dtype):
    x0, eps, _ = latents(shape, 3, dtype)
    sigma, alpha = levels(shape[0]), levels(shape[0]).cos()
    for factor in (None, alpha):

        def operator(x0: Tensor, backend: str, factor: Tensor | None = factor) -> Tensor:
            return ops.renoise(x0, eps.to(x0.dtype), sigma, alpha=factor, backend=backend).to(x0.dtype)

        assert_as_good_as_torch(operator, (x0,), (eps,), "cuda", dtype=dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses(shape: tuple[int, ...], dtype: torch.dtype, raw: bool, masked: bool):
    student, teacher, fake, uncond, x_t = latents(shape, 5, dtype)
    sigma = levels(shape[0])
    mask = None
    if masked:
        mask = torch.ones(shape[0], shape[2])
        mask[0, 0] = 0

    def where(dtype: torch.dtype) -> dm_loss.Preconditioned | None:
        return dm_loss.Preconditioned(x_t.to(dtype), sigma.cos(), -sigma.sin()) if raw else None

    def vsd(student: Tensor, backend: str) -> Tensor:
        to = student.dtype
        return ops.vsd_loss(
            student,
            teacher.to(to),
            fake.to(to),
            uncond=uncond.to(to),
            guidance=3.0,
            preconditioned=where(to),
            frame_mask=mask,
            backend=backend,
        )

    def critic(fake: Tensor, backend: str) -> Tensor:
        return ops.fake_score_loss(
            fake,
            student.to(fake.dtype),
            sigma,
            preconditioned=where(fake.dtype),
            frame_mask=mask,
            backend=backend,
        )

    grad = torch.linspace(1, 2, shape[0])
    for operator, leaf in ((vsd, student), (critic, fake)):
        assert_as_good_as_torch(operator, (leaf,), (grad,), "cuda", 4, dtype)


def test_a_silenced_sample_has_no_gradient():
    student, teacher, fake = latents((2, 4, 3, 4, 8), 3, torch.float32)
    fake[1, 0, 0, 0, 0] = float("nan")
    student.requires_grad_()
    loss = ops.vsd_loss(student, teacher, fake, dm_loss.PREDICT25, backend="cuda")
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss[1] == 0 and not gradient[1].any() and gradient[0].all()
    shown = ops.vsd_loss(student, teacher, fake, backend="cuda")
    assert shown[1].isnan() and shown[0].isfinite()
