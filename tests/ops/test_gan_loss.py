"""Adversarial losses on logits."""

import math

import pytest
import torch

from cosmos_distill import ops


def test_by_hand():
    fake, real = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -2.0])
    torch.testing.assert_close(
        ops.generator_loss(fake), torch.tensor([math.log(2), math.log1p(math.exp(-3))])
    )
    expected = [2 * math.log(2), math.log1p(math.exp(3)) + math.log1p(math.exp(2))]
    torch.testing.assert_close(ops.discriminator_loss(fake, real), torch.tensor(expected))


def test_heads_are_averaged_and_samples_are_not():
    logits = torch.tensor([[0.5, -1.0], [2.0, 2.0]], dtype=torch.float64)
    singles = torch.stack([ops.generator_loss(logits[:, head]) for head in range(2)])
    torch.testing.assert_close(ops.generator_loss(logits), singles.mean(0))
    assert ops.discriminator_loss(logits, -logits).dtype == torch.float64


def test_gradients_pull_apart():
    fake, real = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    ops.discriminator_loss(fake, real).sum().backward()
    torch.testing.assert_close(fake.grad, torch.full((2, 1), 0.5))
    torch.testing.assert_close(real.grad, torch.full((2, 1), -0.5))
    (pull,) = torch.autograd.grad(ops.generator_loss(fake).sum(), fake)
    torch.testing.assert_close(pull, torch.full((2, 1), -0.5))


def test_large_logits_stay_finite():
    extreme = torch.tensor([1e4, -1e4])
    assert ops.generator_loss(extreme).tolist() == [0.0, 1e4]
    assert ops.generator_loss(extreme.bfloat16()).dtype == torch.float32


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="real must be"):
        ops.discriminator_loss(torch.zeros(2, 1), torch.zeros(3, 1))
