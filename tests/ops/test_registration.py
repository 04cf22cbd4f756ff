"""The registration of every operator, by torch's own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill.ops import adaln, adamw, attn, dm_loss, qknorm  # noqa: F401  # registers their operators
from cosmos_distill.ops.library import NAMESPACE, kernels
from tests import lanes
from tests.ops.calls import FOLDERS, FRAME_M, FRAMES, LATENT, PER_SAMPLE, TABLE, K, M, Q, W, X, draw

STATS = torch.stack([X.mean(-1), X.var(-1, correction=0).add(1e-6).rsqrt()], dim=-1)
RSTD, LSE = draw(2, 6, 3).abs(), draw(2, 3, 6)
GRID, PACKED = [1, 2, 3, 3, 1, 2], draw(1 * 3 + 2 * 1 + 3 * 2)
COEFFICIENTS, MASK = draw(2, 2), torch.ones(2, 2)
STEP = (3, 1e-2, 0.1, 0.9, 0.99, 1e-8, 0.1)

SAMPLES: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "adaln_modulate": (
        "adaln",
        [(X, M, M, 1e-6, False, None), (FRAMES, FRAME_M, FRAME_M, 1e-6, True, torch.bfloat16)],
    ),
    "adaln_modulate_backward": (
        "adaln",
        [(X, X, STATS, M, False, 0b111), (X.bfloat16(), X, STATS, M, True, 0b001)],
    ),
    "gated_residual": ("adaln", [(X, X, M), (FRAMES, FRAMES.half(), FRAME_M)]),
    "gated_residual_backward": (
        "adaln",
        [(X, X, M, None, 0b11), (X, None, M, torch.float16, 0b01), (X, X.half(), M, torch.float16, 0b10)],
    ),
    "gated_residual_adaln": (
        "adaln",
        [
            (X, X, M, M, M, 1e-6, False, None),
            (FRAMES, FRAMES, *[FRAME_M] * 3, 1e-6, True, None),
            (X, X.bfloat16(), M, M, M, 1e-6, False, torch.bfloat16),
        ],
    ),
    "gated_residual_adaln_backward": (
        "adaln",
        [
            *((g, X, X, X, STATS, M, M, False, None, 0b11111) for g in (None, X)),
            (X, X.bfloat16(), X, None, STATS, M, M, True, torch.bfloat16, 0b00011),
        ],
    ),
    "qk_norm_rope": (
        "qknorm",
        [
            (Q, Q, W, W, None, None, [], False, 1e-6),
            (Q, K, W, W, None, None, [], False, 1e-6),
            (Q, Q, W, W, TABLE, TABLE, [], False, 1e-6),
            (Q, Q, W, W, PACKED, PACKED, GRID, True, 1e-6),
        ],
    ),
    "qk_norm_rope_backward": (
        "qknorm",
        [(Q, Q, Q, Q, W, W, RSTD, RSTD, PACKED, PACKED, GRID, False, bits) for bits in (0b1111, 0b0001)],
    ),
    "attention": ("attn", [(Q, K, K, 0.3)]),
    "attention_backward": ("attn", [(Q, g, Q, K, K, Q, LSE, 0.3, w) for g, w in ((None, 7), (LSE, 5))]),
    "renoise": ("dm_loss", [(LATENT, LATENT, a, PER_SAMPLE) for a in (None, PER_SAMPLE)]),
    "vsd": (
        "dm_loss",
        [
            (LATENT, LATENT, LATENT, None, None, 0.0, None, None),
            (LATENT, LATENT, LATENT, LATENT, LATENT, 2.0, COEFFICIENTS, MASK),
        ],
    ),
    "vsd_gradient": ("dm_loss", [(LATENT, PER_SAMPLE)]),
    "with_gradient": ("dm_loss", [(LATENT, PER_SAMPLE, PER_SAMPLE, LATENT)]),
    "squared_error": (
        "dm_loss",
        [(LATENT, LATENT, None, None, None), (LATENT, LATENT, LATENT, COEFFICIENTS, MASK)],
    ),
    "squared_error_gradient": ("dm_loss", [(PER_SAMPLE, LATENT, LATENT, LATENT, COEFFICIENTS, MASK)]),
    "adamw_ema": (
        "adamw",
        [
            ([X, M], [X, M], [X, M], [X.abs(), M.abs()], [X, M], c, *STEP)
            for c in ([], [X.bfloat16(), M.bfloat16()])
        ],
    ),
}
"""Operator -> its folder and arguments to call it with, the backend left out."""

NOT_DIFFERENTIABLE = {
    "adaln_modulate_backward",
    "gated_residual_adaln_backward",
    "gated_residual_backward",
    "qk_norm_rope_backward",
    "attention_backward",
    "vsd",
    "vsd_gradient",
    "squared_error_gradient",
}
# Arguments that no gradient is defined for: tables, noise, targets.
CONSTANTS = {
    "qk_norm_rope": {4, 5},
    "renoise": {1, 2, 3},
    "with_gradient": {1, 2, 3},
    "squared_error": {1, 2, 3, 4},
}


def registered(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.cosmos_distill, name).default


def backend_of(folder: str, function: str) -> str:
    """The backend that has this operator on a CPU, or the test is skipped."""
    backend = FOLDERS[folder]
    # Of an operator whose kernel is not the backend's own, the backend has its gradient.
    function = {"attention": "attention_backward", "with_gradient": "vsd_gradient"}.get(function, function)
    try:
        found = hasattr(kernels(folder, backend), function)
    except ImportError as error:
        lanes.missing(str(error))
    if not found:
        pytest.skip(f"{folder} has no {function} in its backend {backend!r}")
    return backend


def cases() -> list[Any]:
    return [
        pytest.param(name, i, id=f"{name}-{i}")
        for name, (_, samples) in SAMPLES.items()
        for i in range(len(samples))
    ]


def arguments(name: str, index: int, learn: bool) -> tuple[Any, ...]:
    folder, samples = SAMPLES[name]
    learn = learn and name not in NOT_DIFFERENTIABLE
    given = [
        a.clone().requires_grad_(learn and i not in CONSTANTS.get(name, ()))
        if isinstance(a, Tensor)
        else [x.clone() if isinstance(x, Tensor) else x for x in a]
        if isinstance(a, list)
        else a
        for i, a in enumerate(samples[index])
    ]
    return *given, backend_of(folder, name)


def test_every_registered_operator_is_tested():
    known = {
        name.removeprefix(f"{NAMESPACE}::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{NAMESPACE}::")
    }
    assert known == SAMPLES.keys()


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "index"), cases())
def test_registration_is_complete(name: str, index: int):
    """Schema, gradient, fake shapes and tracing with dynamic shapes, by torch's own check."""
    torch.library.opcheck(registered(name), arguments(name, index, learn=True))


@pytest.mark.compiled
@pytest.mark.parametrize("name", sorted(NOT_DIFFERENTIABLE))
def test_what_has_no_gradient_says_so(name: str):
    args = [
        a.requires_grad_() if isinstance(a, Tensor) and i == 0 else a
        for i, a in enumerate(arguments(name, len(SAMPLES[name][1]) - 1, learn=False))
    ]
    result = registered(name)(*args)
    with pytest.raises(RuntimeError, match=f"{name} is not differentiable"):
        (result[0] if isinstance(result, tuple) else result).sum().backward()
