"""csrc/dm_loss.cu, emulated, through the public operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import dm_loss
from tests.ops.calls import assert_samples_may_be_empty
from tests.ops.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("emulated_cuda")

SHAPES = [(2, 4, 3, 5, 4), (3, 2, 2, 3, 3), (2, 16, 4, 20, 24)]  # wide loads; none; several blocks a sample
DRAWS = 4
"""Of the emulated kernels: fewer than of others, which cost less."""
SETTINGS = ["plain", "guided", "preconditioned", "masked"]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def extras(setting: str, shape: tuple[int, ...], like: Tensor) -> dict[str, object]:
    """Optional arguments, cast like the operator's own."""
    extra: dict[str, object] = {}
    if setting == "preconditioned":
        skip, out = draw(shape[:1], 10).to(like.dtype), draw(shape[:1], 11).to(like.dtype)
        extra["preconditioned"] = ops.Preconditioned(draw(shape, 12).to(like.dtype), skip, out)
    if setting == "masked":
        extra["frame_mask"] = draw((shape[0], shape[2]), 13) > 0
    return extra


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_torch(shape: tuple[int, ...], setting: str, dtype: torch.dtype):
    others = [draw(shape, seed).to(dtype) for seed in range(4)]

    def vsd(x: Tensor, backend: str) -> Tensor:
        teacher, fake, uncond = (t.to(x.dtype) for t in others[:3])
        guided = {"uncond": uncond, "guidance": 1.5} if setting == "guided" else {}
        return ops.vsd_loss(
            x, teacher, fake, dm_loss.RCM, **guided, **extras(setting, shape, x), backend=backend
        )

    def score(p: Tensor, backend: str) -> Tensor:
        sigma = draw(shape[:1], 5).exp()
        target = others[3].to(p.dtype)
        return ops.fake_score_loss(p, target, sigma, **extras(setting, shape, p), backend=backend)

    for operator in (vsd, score):
        grad = draw(shape[:1], 7).float()
        cases = [(operator, (draw(shape, 100 + seed),), (grad,)) for seed in range(DRAWS)]
        assert_as_good_as_torch(cases, "cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_renoise(shape: tuple[int, ...], dtype: torch.dtype):
    x0, eps = (draw(shape, seed).to(dtype).requires_grad_(seed == 0) for seed in range(2))
    sigma, alpha = draw(shape[:1], 2), draw((1,), 3).expand(shape[0])
    for signal in (None, alpha):
        got, want = (ops.renoise(x0, eps, sigma, alpha=signal, backend=b) for b in ("cuda", "reference"))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), x0)[0] for t in (got, want)))


def test_a_silenced_sample_with_a_nan_has_no_gradient():
    x, teacher, fake = (draw((2, 1, 1, 4, 4), seed) for seed in range(3))
    fake[1, 0, 0, 2, 2] = float("nan")
    x.requires_grad_()
    loss = ops.vsd_loss(x, teacher, fake, dm_loss.DMD2, backend="cuda")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert loss[1] == 0 and not grad[1].any() and grad[0].all()


def test_coefficients_and_sums_may_be_fp64():
    """Kernels read fp32: wider numbers are rounded before, not taken apart."""
    shape = SHAPES[0]
    x, teacher, fake, x_t = (draw(shape, seed) for seed in range(4))
    x.requires_grad_()
    where = ops.Preconditioned(x_t, *(draw(shape[:1], seed).double() for seed in (10, 11)))
    results = []
    for backend in ("cuda", "reference"):
        loss = ops.vsd_loss(
            x, teacher, fake, preconditioned=where, sum_over_shards=Tensor.double, backend=backend
        )
        error = ops.fake_score_loss(
            x, teacher, draw(shape[:1], 5).exp().double(), preconditioned=where, backend=backend
        )
        grads = [torch.autograd.grad(t.sum(), x)[0] for t in (loss, error)]
        results.append([t.float() for t in (loss, error, *grads)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_what_both_predictions_share_is_not_rounded_into_their_difference():
    """c_skip x_t cancels: at high noise it is thousands of times as large as what is left."""
    shape = SHAPES[0]
    x, teacher, fake, x_t = (draw(shape, seed) for seed in range(4))
    skip, out = draw(shape[:1], 10), draw(shape[:1], 11)
    where = ops.Preconditioned(4096 * x_t, skip, out)
    direction, _ = ops.vsd_direction(x, teacher, fake, preconditioned=where, backend="cuda")
    assert torch.equal(direction, out[:, None, None, None, None] * (fake - teacher))


def test_samples_may_be_empty():
    assert_samples_may_be_empty("cuda")
