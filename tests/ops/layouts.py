"""Tensors with axes of one element, and the ways their strides may differ without torch taking note."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.calls import Public, draw, tuple_of


def swapped(x: Tensor) -> Tensor:
    """x with its first two axes the other way round in memory."""
    if x.dim() < 2:
        return x
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def odd(x: Tensor) -> Tensor:
    """x, contiguous as torch has it, with strides of axes of one element that lead out of its memory."""
    x = x.contiguous()
    return x.as_strided(
        x.shape, [997 if n == 1 else stride for n, stride in zip(x.shape, x.stride(), strict=True)]
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"swapped": swapped, "odd": odd}
PLACES = [torch.clone, *LAYOUTS.values()]


def _adaln(*shape: int) -> dict[str, Public]:
    x, m = draw(*shape), draw(*shape[:-2], shape[-1])
    return {
        f"adaln_modulate {shape}": (ops.adaln_modulate, [x, m, m + 1]),
        f"gated_residual {shape}": (ops.gated_residual, [x, x + 1, m]),
        f"gated_residual_adaln {shape}": (ops.gated_residual_adaln, [x, x + 1, m, m + 1, m + 2]),
    }


def _qk_norm_rope(*shape: int) -> dict[str, Public]:
    q, table = draw(*shape), draw(shape[1], shape[-1])
    rotated = partial(ops.qk_norm_rope, cos=table.cos(), sin=table.sin())
    return {f"qk_norm_rope {shape}": (rotated, [q, q + 1, draw(shape[-1]), draw(shape[-1]) + 1])}


def _attention(batch: int, queries: int, keys: int, heads: int) -> dict[str, Public]:
    q, k = draw(batch, queries, heads, 8), draw(batch, keys, heads, 8)
    name = f"{(batch, queries, keys, heads)}"
    return {
        f"attention {name}": (ops.attention, [q, k, k + 1]),
        f"attention lse {name}": (partial(ops.attention, return_lse=True), [q, k, k + 1]),
    }


def _latents(*shape: int) -> dict[str, Public]:
    x, sigma, mask = draw(*shape), draw(shape[0]).abs() + 1, torch.ones(shape[0], shape[2])

    def in_all(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # Of x alone there is a gradient; the others are given as they lie.
        return lambda x, *others, **o: loss(x, *others, **o) + 0 * sum(t.sum() for t in others)

    vsd, critic = partial(ops.vsd_loss, frame_mask=mask), partial(ops.fake_score_loss, sigma=sigma)
    return {
        f"renoise {shape}": (in_all(partial(ops.renoise, sigma=sigma)), [x, x + 1]),
        f"vsd_loss {shape}": (in_all(vsd), [x, x + 1, x + 3]),
        f"fake_score_loss {shape}": (in_all(critic), [x, x + 1]),
    }


def with_axes_of_one_element() -> dict[str, Public]:
    """Every operator with kernels of its own: a function of differentiable tensors, and those."""
    found: dict[str, Public] = {}
    for tokens in ((3, 1, 4, 8), (1, 3, 4, 8), (3, 1, 8), (1, 1, 1, 8), (3, 2, 1, 1)):
        found |= _adaln(*tokens)
    for heads in ((3, 1, 2, 8), (1, 3, 2, 8), (3, 4, 1, 8), (1, 1, 1, 2)):
        found |= _qk_norm_rope(*heads)
    for sizes in ((3, 1, 20, 2), (1, 4, 20, 1), (2, 4, 1, 2), (1, 1, 1, 1)):
        found |= _attention(*sizes)
    for latent in ((3, 1, 2, 1, 4), (1, 2, 1, 3, 1)):
        found |= _latents(*latent)
    return {k: (f, [t.clone().requires_grad_() for t in ts]) for k, (f, ts) in found.items()}


def results(
    name: str, place: Callable[[Tensor], Tensor], dtype: torch.dtype, backend: str | None
) -> list[Tensor]:
    """Outputs and gradients where tensors and the gradients of outputs lie so in memory."""
    operator, tensors = with_axes_of_one_element()[name]
    leaves = [place(t.detach().to(dtype)).requires_grad_() for t in tensors]
    outputs = tuple_of(operator(*leaves, backend=backend))
    grads = [place(draw(*r.shape).to(r.dtype)) for r in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def assert_laid_out_as_one_likes(
    name: str, layout: str, backend: str | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """The operator takes tensors in this layout for what they are."""
    got, want = (results(name, place, dtype, backend) for place in (LAYOUTS[layout], torch.clone))
    torch.testing.assert_close(got, want)
