"""Every public differentiable operator against finite differences: its reference in fp64 and, registered with
torch, the backend that serves a CPU, as closely as fp32 can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops

NOT_CHECKED = {
    "vsd_loss": "its gradient leaves out, on purpose, how its value depends on x: test_published_forms",
    "vsd_direction": "differentiates nothing: what it returns is sent on as a gradient",
    "attention_backward": "a gradient itself",
    "keep_attention": "a policy",
    "adamw_ema": "works in place",
    "Preconditioned": "a type",
    "VSDForm": "a type",
    "AdamWStep": "a type",
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


ANGLES = draw(1, 1), draw(2, 1), draw(2, 1)
LATENT = 2, 2, 2, 1, 2
SIGMA = draw(2).abs() + 1
Q, K, W = draw(1, 4, 2, 6), draw(1, 4, 1, 6), draw(6)


def where(x: Tensor) -> ops.Preconditioned:
    x_t, skip, out = (t.to(x.dtype) for t in (draw(*LATENT, seed=3), SIGMA.cos(), SIGMA.sin()))
    return ops.Preconditioned(x_t, skip, out)


CASES: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "adaln_modulate": (ops.adaln_modulate, [draw(2, 3, 6), draw(2, 6), draw(2, 6)]),
    "adaln_modulate per frame": (
        ops.adaln_modulate,
        [draw(1, 2, 1, 2, 6), draw(1, 2, 1, 1, 6), draw(1, 2, 1, 1, 6)],
    ),
    "gated_residual_adaln": (
        ops.gated_residual_adaln,
        [draw(1, 2, 3, 6), draw(1, 2, 3, 6, seed=1), *(draw(1, 2, 6, seed=i) for i in range(3))],
    ),
    "gated_residual": (ops.gated_residual, [draw(1, 2, 3, 6), draw(1, 2, 3, 6, seed=1), draw(1, 2, 6)]),
    "adaln_modulate rms": (
        lambda *given, **o: ops.adaln_modulate(*given, norm="rms", **o),
        [draw(2, 3, 6), draw(2, 6), draw(2, 6)],
    ),
    "gated_residual_adaln rms": (
        lambda *given, **o: ops.gated_residual_adaln(*given, norm="rms", **o),
        [draw(1, 2, 3, 6), draw(1, 2, 3, 6, seed=1), *(draw(1, 2, 6, seed=i) for i in range(3))],
    ),
    "qk_norm_rope": (ops.qk_norm_rope, [Q, K[:, :3], W, W + 1]),
    "qk_norm_rope tables": (ops.qk_norm_rope, [Q, K, W, W + 1, draw(4, 6), draw(4, 6, seed=1)]),
    "qk_norm_rope angles": (
        lambda q, k, a, b, **o: ops.qk_norm_rope(q, k, a, b, angles=tuple(t.to(q) for t in ANGLES), **o),
        [Q, K, W, W + 1],
    ),
    "qk_norm_rope interleaved": (
        lambda *given, **o: ops.qk_norm_rope(*given, interleaved=True, **o),
        [Q, K, W, W + 1, draw(4, 6), draw(4, 6, seed=1)],
    ),
    "attention": (ops.attention, [draw(1, 2, 2, 4), draw(1, 3, 2, 4), draw(1, 3, 2, 4, seed=1)]),
    "attention lse": (
        lambda *qkv, **o: ops.attention(*qkv, return_lse=True, **o),
        [draw(1, 2, 2, 4), draw(1, 3, 2, 4), draw(1, 3, 2, 4, seed=1)],
    ),
    "merge_attention": (
        lambda a, b, c, d, **_: ops.merge_attention([a, b], [c, d]),
        [*(draw(1, 2, 2, 3, seed=i) for i in range(2)), *(draw(1, 2, 2, seed=i) for i in range(2))],
    ),
    "renoise": (
        lambda x, **o: ops.renoise(x, draw(*LATENT).to(x), SIGMA.to(x), alpha=SIGMA.cos().to(x), **o),
        [draw(*LATENT, seed=1)],
    ),
    "combine_guidance": (
        lambda a, b, **_: ops.combine_guidance(a, b, 3.0),
        [draw(*LATENT), draw(*LATENT, seed=1)],
    ),
    "fake_score_loss": (
        lambda x, **o: ops.fake_score_loss(
            x, draw(*LATENT).to(x), SIGMA.to(x), preconditioned=where(x), frame_mask=torch.eye(2), **o
        ),
        [draw(*LATENT, seed=1)],
    ),
    "generator_loss": (ops.generator_loss, [draw(2, 3)]),
    "discriminator_loss": (ops.discriminator_loss, [draw(2, 3), draw(2, 3, seed=1)]),
}


def test_every_public_operator_is_checked():
    assert {name.partition(" ")[0] for name in CASES} | NOT_CHECKED.keys() == set(ops.__all__)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_in_fp64(name: str):
    operator, tensors = CASES[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    # And nobody named, which in fp64 and in forward mode is the same.
    torch.autograd.gradcheck(lambda *given: operator(*given, backend="reference"), leaves)
    torch.autograd.gradcheck(operator, leaves, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:Input #")  # gradcheck would rather have fp64
@pytest.mark.parametrize("name", CASES)
def test_the_registered_operator_in_fp32(name: str):
    operator, tensors = CASES[name]
    leaves = [t.float().requires_grad_() for t in tensors]
    with torch.profiler.profile():  # somebody is watching: no short cut past the dispatcher
        torch.autograd.gradcheck(lambda *given: operator(*given), leaves, eps=1e-2, atol=2e-2, rtol=2e-2)
