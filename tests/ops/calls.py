"""Every public operator called with small tensors, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cosmos_distill import ops


def draw(*shape: int) -> Tensor:
    """fp32 on the CPU, whatever torch's defaults."""
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def modulated(*shape: int) -> tuple[Tensor, Tensor]:
    """Tokens and a row of modulation."""
    return draw(*shape), draw(*shape[:-2], shape[-1])


X, M = modulated(2, 5, 8)
FRAMES, FRAME_M = modulated(2, 3, 4, 6)
Q, K, W, TABLE = draw(2, 6, 3, 12), draw(2, 4, 3, 12), draw(12), draw(6, 12)
LATENT, PER_SAMPLE = draw(2, 3, 2, 4, 4), draw(2).abs()

FOLDERS = {"adaln": "cpu", "adamw": "cpu", "qknorm": "cpu", "attn": "sdpa", "dm_loss": "cpu"}
"""Folder -> the backend that serves its operators on a CPU."""

Public = tuple[Callable[..., Any], list[Tensor]]


def public() -> dict[str, Public]:
    """Every public operator with kernels of its own: a function of differentiable tensors, and those."""
    angles = (draw(1, 3), draw(2, 1), draw(3, 2))
    operators: dict[str, Public] = {
        "adaln_modulate": (ops.adaln_modulate, [X, M, M + 1]),
        "adaln_modulate per frame": (ops.adaln_modulate, [FRAMES, FRAME_M, FRAME_M + 1]),
        "gated_residual_adaln": (ops.gated_residual_adaln, [X, X + 1, M, M + 1, M + 2]),
        "gated_residual": (ops.gated_residual, [X, X + 1, M]),
        "adaln_modulate rms": (partial(ops.adaln_modulate, norm="rms"), [X, M, M + 1]),
        "qk_norm": (ops.qk_norm_rope, [Q, K, W, W + 1]),
        "qk_norm_rope": (
            lambda *a, **b: ops.qk_norm_rope(*a, TABLE.cos(), TABLE.sin(), **b),
            [Q, Q + 1, W, W],
        ),
        "qk_norm_rope interleaved": (
            lambda *a, **b: ops.qk_norm_rope(*a, TABLE.cos(), TABLE.sin(), interleaved=True, **b),
            [Q, Q + 1, W, W],
        ),
        "qk_norm_rope angles": (lambda *a, **b: ops.qk_norm_rope(*a, angles=angles, **b), [Q, Q + 1, W, W]),
        "attention": (ops.attention, [Q, K, K + 1]),
        "attention lse": (lambda *a, **b: ops.attention(*a, return_lse=True, **b), [Q, K, K + 1]),
        "renoise": (lambda x, **b: ops.renoise(x, LATENT, PER_SAMPLE, **b), [LATENT]),
        "vsd_loss": (lambda x, **b: ops.vsd_loss(x, LATENT + 1, LATENT + 3, **b), [LATENT]),
        "fake_score_loss": (lambda x, **b: ops.fake_score_loss(x, LATENT + 1, PER_SAMPLE, **b), [LATENT]),
    }
    return {k: (f, [t.clone().requires_grad_() for t in ts]) for k, (f, ts) in operators.items()}


def tuple_of(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def run(operator: Callable[..., Any], tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """Results and gradients."""
    results = tuple_of(operator(*tensors, **options))
    grads = [draw(*r.shape).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, tensors, grads)]


def bit_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _given(name: str, backend: str | None, dtype: torch.dtype) -> Public:
    operator, tensors = public()[name]
    return partial(operator, backend=backend), [t.detach().to(dtype).requires_grad_() for t in tensors]


def assert_compiles_whole(name: str, backend: str | None = None, dtype: torch.dtype = torch.float32) -> None:
    """One graph of an operator has its results and gradients."""
    operator, tensors = _given(name, backend, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors), run(operator, tensors))
    with torch.no_grad():
        torch.testing.assert_close(tuple_of(compiled(*tensors)), tuple_of(operator(*tensors)))


@contextmanager
def defaults(setting: torch.dtype | str) -> Iterator[None]:
    """Within, torch's default dtype, or its default device."""
    if isinstance(setting, str):
        with torch.device(setting):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_whatever_the_default(
    setting: torch.dtype | str, name: str, backend: str | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Results and gradients are the same bits: kernels write fp32 where others think of the default dtype."""
    operator, tensors = _given(name, backend, dtype)
    want = run(operator, tensors)
    with defaults(setting):
        got = run(operator, tensors)
    assert [(g.dtype, g.device) for g in got] == [(w.dtype, w.device) for w in want]
    assert bit_equal(got, want)


def assert_samples_may_be_empty(backend: str) -> None:
    """Several samples without an element: nothing is read, and what comes out is what torch has."""
    factor = draw(2).abs() + 1

    def results(shape: tuple[int, ...], backend: str, **where: Any) -> list[Tensor]:
        x, other = draw(*shape).requires_grad_(), draw(*shape)
        losses = [
            ops.renoise(x, other, factor, alpha=factor, backend=backend),
            ops.vsd_loss(x, other, other, uncond=other, guidance=2.0, backend=backend, **where),
            ops.fake_score_loss(x, other, factor, backend=backend, **where),
        ]
        grads = [torch.autograd.grad(loss.sum(), x)[0] for loss in losses]
        return [*losses, *grads, ops.vsd_direction(x, other, other, backend=backend, **where)[0]]

    for shape in ((2, 0), (2, 0, 3), (2, 3, 0, 4, 4), (2, 3, 2, 0, 4)):
        raw = ops.Preconditioned(draw(*shape), factor, factor)
        where: list[dict[str, Any]] = [{}, {"preconditioned": raw}]
        if len(shape) == 5:
            where.append({"frame_mask": torch.ones(2, shape[2])})
        for extra in where:
            got, want = (results(shape, b, **extra) for b in (backend, "reference"))
            torch.testing.assert_close(got, want, equal_nan=True)  # a mean over nothing is NaN


def assert_traced_as_it_is(name: str, backend: str | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Fake results and gradients have the shapes, dtypes, devices and strides of real ones."""
    assert_fakes_are_like_it(*_given(name, backend, dtype))


def assert_fakes_are_like_it(operator: Callable[..., Any], tensors: list[Tensor]) -> None:
    """See :func:`assert_traced_as_it_is`."""
    real = run(operator, tensors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = run(operator, [mode.from_tensor(t.detach()).requires_grad_() for t in tensors])
    described = [[(t.shape, t.dtype, t.device, t.stride()) for t in results] for results in (fake, real)]
    assert described[0] == described[1]


def assert_alone_as_together(operator: Callable[..., Any], tensors: list[Tensor], backend: str) -> None:
    """The gradient of each input is the same bits, whatever others are asked for beside it."""

    def gradients(learning: set[int]) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_(i in learning) for i, t in enumerate(tensors)]
        results = tuple_of(operator(*leaves, backend=backend))
        wanted = [leaves[i] for i in sorted(learning)]
        return list(torch.autograd.grad(results, wanted, [draw(*r.shape).to(r.dtype) for r in results]))

    everything = gradients(set(range(len(tensors))))
    for i, want in enumerate(everything):
        assert torch.equal(gradients({i})[0], want), i
