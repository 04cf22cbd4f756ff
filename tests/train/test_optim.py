"""The schedule, the masters of half-precision weights, clipping, and state that comes back bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cosmos_distill.config import LambdaLinear, Optim
from cosmos_distill.train.optim import RoleOptimizer, learning_rate
from tests.train.fakes import SHAPE, Network


def gradients(network: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in network.parameters()]


def tensors(optimizer: RoleOptimizer) -> dict[str, Tensor]:
    return {name: piece.blocks[0].value.clone() for name, piece in optimizer.pieces().items()}


def load(optimizer: RoleOptimizer, saved: dict[str, Tensor]) -> None:
    pieces = optimizer.pieces(allocate=True)
    for name, value in saved.items():
        if name in pieces:
            pieces[name].blocks[0].value.copy_(value)
    optimizer.after_load(saved)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (Optim(lr=2.0), {0: 2.0, 50: 2.0, 99: 2.0}),
        (Optim(lr=2.0, warmup_steps=4), {0: 0.5, 1: 1.0, 3: 2.0, 4: 2.0, 99: 2.0}),
        (Optim(lr=2.0, cosine=True), {0: 2.0, 50: 1.0, 25: 1 + math.sqrt(0.5), 100: 0.0, 120: 0.0}),
        (Optim(lr=2.0, cosine=True, warmup_steps=20), {0: 0.1, 19: 2.0, 20: 2.0, 60: 1.0, 100: 0.0}),
    ],
)
def test_learning_rate(optim: Optim, expected: dict[int, float]) -> None:
    for step, value in expected.items():
        assert learning_rate(optim, step, max_steps=100, updates=0) == pytest.approx(value, abs=1e-12), step


def test_lambda_linear_goes_by_the_roles_own_updates() -> None:
    optim = Optim(lr=2.0, linear=LambdaLinear())
    factors = {0: 1e-6, 50: 0.4950005, 100: 0.9898525, 200_000: 0.695, 400_000: 0.4, 500_000: 0.4}
    for updates, factor in factors.items():
        rate = learning_rate(optim, 7, max_steps=10, updates=updates)
        assert rate == pytest.approx(2.0 * factor, rel=1e-9), updates
    with pytest.raises(ValueError, match="of its own"):
        Optim(lr=1.0, linear=LambdaLinear(), cosine=True)

    network = nn.Linear(2, 1)
    optimizer = RoleOptimizer(network, Optim(lr=1.0, linear=LambdaLinear(warmup_steps=4, start=0.0)), 100)
    for step in (0, 5):  # the role's phases
        assert optimizer.learning_rate(step) == pytest.approx(0.99 / 4 * (step // 5))
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step(step)
    again = RoleOptimizer(nn.Linear(2, 1), optimizer.optim, 100)
    load(again, tensors(optimizer))
    assert again.learning_rate(10) == optimizer.learning_rate(10) == pytest.approx(0.99 / 2)


def test_masters_are_fp32_adamw_where_half_precision_alone_stands_still() -> None:
    optim = Optim(lr=1e-5, weight_decay=0.1)
    half, full = Network(0).bfloat16(), Network(0).bfloat16().float()
    wrapped = RoleOptimizer(half, optim, 100)
    reference = torch.optim.AdamW(full.parameters(), lr=1e-5, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in half.named_parameters()}
    for step in range(5):
        for p, g in zip(half.parameters(), gradients(half, step), strict=True):
            (p * g.bfloat16()).sum().backward()
        for p, g in zip(full.parameters(), gradients(full, step), strict=True):
            p.grad = g.bfloat16().float()
        wrapped.step(step)
        reference.step()
        wrapped.zero_grad()
    for name, p in full.named_parameters():
        torch.testing.assert_close(wrapped.masters[name].detach(), p.detach(), rtol=1e-6, atol=1e-9)
        assert not torch.equal(wrapped.masters[name], start[name].float())
        assert torch.equal(half.get_parameter(name), wrapped.masters[name].bfloat16())
    # The updates are below half a unit in the last place of most weights: without masters they were lost.
    unmoved = (half.get_parameter("first.weight") == start["first.weight"]).float().mean()
    assert unmoved > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_towards_another_roles(dtype: torch.dtype) -> None:
    """A thousandth of the way, which bf16 alone would not notice, a thousand times."""
    one, other = (RoleOptimizer(Network(seed).to(dtype), Optim(lr=1.0), 1) for seed in (0, 1))
    start, goal = ({n: m.detach().clone() for n, m in o.masters.items()} for o in (one, other))
    for _ in range(1000):
        one.align(other, 0.999)
    for name, master in one.masters.items():
        torch.testing.assert_close(master.detach(), goal[name] + 0.999**1000 * (start[name] - goal[name]))
        assert torch.equal(one.parameters[name], master.to(dtype))
        assert torch.equal(other.masters[name], goal[name])
    with pytest.raises(ValueError, match="trains the same parameters"):
        one.align(RoleOptimizer(nn.Linear(2, 2), Optim(lr=1.0), 1), 0.5)


def test_half_precision_gradients_are_accumulated_in_fp32() -> None:
    network = nn.Linear(1, 1, bias=False).bfloat16()
    optimizer = RoleOptimizer(network, Optim(lr=1.0), 1)
    for value in [256.0] + [1.0] * 4:  # bf16 has 8 significant bits: 256 + 1 = 256
        network(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
        assert network.weight.grad is None
    assert float(optimizer.gradient_norm()) == 260.0


def test_clip_scales_to_the_limit_or_leaves_alone() -> None:
    network = Network(0)
    for limit in (0.5, 1e9, None):
        optimizer = RoleOptimizer(network, Optim(lr=1.0, clip_norm=limit), 1)
        for p, g in zip(network.parameters(), gradients(network, 3), strict=True):
            p.grad = g.clone()
        norm = float(optimizer.gradient_norm())
        assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients(network, 3)]).norm()))
        optimizer.clip(norm)
        wanted = 0.5 if limit == 0.5 else norm
        assert float(optimizer.gradient_norm()) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    def advance(network: Network, optimizer: RoleOptimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(step)).to(dtype)
            network(x).square().mean().backward()
            optimizer.step(step)
            optimizer.zero_grad()

    optim = Optim(lr=1e-2, warmup_steps=5, cosine=True)
    one = Network(0).to(dtype)
    first = RoleOptimizer(one, optim, 10)
    advance(one, first, range(4))
    assert "exp_avg/unused" not in first.pieces()  # never had a gradient, so AdamW has no state for it

    two = Network(1).to(dtype)
    two.load_state_dict(one.state_dict())
    second = RoleOptimizer(two, optim, 10)
    load(second, tensors(first))
    assert tensors(second).keys() == tensors(first).keys()
    advance(one, first, range(4, 8))
    advance(two, second, range(4, 8))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(tensors(second)[name], value) for name, value in tensors(first).items())


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_allocated_state_is_of_the_dtypes_of_torchs_own(default: torch.dtype) -> None:
    """A count of steps in the default dtype could not be loaded into."""
    network, before = Network(0), torch.get_default_dtype()
    stepped, fresh = (RoleOptimizer(network, Optim(lr=1.0), 1) for _ in range(2))
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    torch.set_default_dtype(default)
    try:
        stepped.step(0)
        fresh.pieces(allocate=True)
    finally:
        torch.set_default_dtype(before)
    dtypes = [{name: value.dtype for name, value in tensors(one).items()} for one in (stepped, fresh)]
    assert dtypes[0] == dtypes[1]


def test_foreign_state_and_frozen_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown parameter 'third\.weight'"):
        load(RoleOptimizer(Network(0), Optim(lr=1.0), 1), {"exp_avg/third.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no fp32 master of .* precision of that run"):
        load(RoleOptimizer(Network(0).bfloat16(), Optim(lr=1.0), 1), {"exp_avg/first.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="nothing to optimise"):
        RoleOptimizer(Network(0).requires_grad_(False), Optim(lr=1.0), 1)


def test_parameters_frozen_at_the_start_stay_frozen() -> None:
    network = Network(0)
    network.first.requires_grad_(False)
    optimizer = RoleOptimizer(network, Optim(lr=1.0), 1)
    optimizer.requires_grad_(False)
    optimizer.requires_grad_(True)
    assert not network.first.weight.requires_grad
    assert network.last.weight.requires_grad
