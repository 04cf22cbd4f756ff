"""Distribution matching in one sweep over memory, for every backend with kernels of its own.

A backend's module offers five functions. Latents are contiguous [B, ...] in one dtype (fp32, bf16 or fp16);
everything [B], [B, 2], [B, 3] and the frame mask [B, T] (for latents [B, C, T, H, W]) is contiguous fp32, and
so is all arithmetic. Sums over a sample are added up in an order that depends neither on the number of
threads nor on the run. ``coefficients`` [B, 2] are c_skip and c_out, given exactly when x_t is: predictions p
then mean x0 = c_skip x_t + c_out p. m is the frame mask, 1 where there is none.

    renoise(x0, eps, alpha or None, sigma) -> fp32 alpha x0 + sigma eps
    vsd(x, teacher, fake, uncond or None, x_t or None, guidance, coefficients or None, frame_mask or None)
        -> direction m (x0_fake - x0_teacher) in x's dtype, with the teacher guided where uncond is given;
           [B, 3] sums of m |x - x0_teacher|, direction^2 (before rounding) and m
    vsd_gradient(direction, slope) -> slope[b] direction, and 0 wherever slope[b] is 0, NaN or not
    squared_error(p, target, x_t or None, coefficients or None, frame_mask or None)
        -> [B] sums of m (target - x0)^2
    squared_error_gradient(grad, p, target, x_t or None, coefficients or None, frame_mask or None)
        -> grad[b] times the derivative of that w.r.t. p, in p's dtype
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..declaration import Kind, Kinds, Measure, narrow, small
from ..library import define, define_differentiable, kernel
from .reference import per_sample

KINDS = Kinds(
    {
        "latent": narrow("B *rest"),
        "wide": Kind("B *rest"),
        "one": small("B"),
        "pair": small("B 2"),
        "sums": small("B 3"),
        "mask": small("B T"),
    },
    split="B",
    usual=torch.float32,
)
_WHERE = "latent? x_t, pair? coefficients, mask? frame_mask"


def _as_fp32(small: Tensor | None) -> Tensor | None:
    """Per-sample values or a frame mask, of any dtype and strides, as kernels read them."""
    return None if small is None else small.detach().float().contiguous()


def _dense(latent: Tensor | None) -> Tensor | None:
    return None if latent is None else latent.detach().contiguous()


def _save_renoise(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
    x0, _, alpha, _, _ = inputs
    ctx.dtype = x0.dtype
    ctx.save_for_backward(alpha)


def _renoise_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (alpha,) = ctx.saved_tensors
    dx = grad if alpha is None else per_sample(alpha, grad) * grad
    return dx.to(ctx.dtype), None, None, None, None


_renoise = define_differentiable(
    "renoise(latent x0, latent eps, one? alpha, one sigma) -> wide(x0)",
    KINDS,
    kernel("dm_loss", "renoise"),
    _save_renoise,
    _renoise_gradient,
    Measure("renoise", "fwd", flops=2),
)


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor, backend: str) -> Tensor:
    """See :func:`cosmos_distill.ops.renoise`."""
    out: Tensor = _renoise(x0.contiguous(), _dense(eps), _as_fp32(alpha), _as_fp32(sigma), backend)
    return out


_vsd = define(
    "vsd(latent x, latent teacher, latent fake, latent? uncond, latent? x_t, float guidance,"
    " pair? coefficients, mask? frame_mask) -> (x, sums(x))",
    KINDS,
    kernel("dm_loss", "vsd"),
    Measure("vsd_loss", "fwd", flops=10, given="uncond", numbers={"guidance": 5.0}),
)


def vsd(
    x: Tensor,
    teacher: Tensor,
    fake: Tensor,
    uncond: Tensor | None,
    x_t: Tensor | None,
    guidance: float,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Direction and [B, 3] sums, see above; nothing gets a gradient."""
    latents = map(_dense, (x, teacher, fake, uncond, x_t))
    both: tuple[Tensor, Tensor] = _vsd(
        *latents, guidance, _as_fp32(coefficients), _as_fp32(frame_mask), backend
    )
    return both


_vsd_gradient = define(
    "vsd_gradient(latent direction, one slope) -> direction",
    KINDS,
    kernel("dm_loss", "vsd_gradient"),
    Measure("vsd_loss", "bwd", flops=1),
)


def _save_known(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
    _, _, slope, direction, ctx.backend = inputs
    ctx.save_for_backward(slope, direction)


def _known_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    slope, direction = ctx.saved_tensors
    # Sums over shards, and with them the slope, may come back wider than they went. Not detached: a second
    # derivative is refused where something still requires a gradient.
    slope = (grad * slope).float().contiguous()
    return _vsd_gradient(direction, slope, ctx.backend), None, None, None, None


with_gradient = define_differentiable(
    "with_gradient(latent x, one value, one slope, latent direction) -> value",
    KINDS,
    lambda x, value, slope, direction, backend: value.clone(memory_format=torch.contiguous_format),
    _save_known,
    _known_gradient,
)
"""A function of x with this value [B] and the gradient slope[b] * direction."""


_squared_error_gradient = define(
    f"squared_error_gradient(one grad, latent p, latent target, {_WHERE}) -> p",
    KINDS,
    kernel("dm_loss", "squared_error_gradient"),
    Measure("fake_score_loss", "bwd", flops=3),
)


def _save_squared(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _squared_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _squared_error_gradient(grad.contiguous(), *ctx.saved_tensors, ctx.backend), *(None,) * 5


_squared_error = define_differentiable(
    f"squared_error(latent p, latent target, {_WHERE}) -> one(p)",
    KINDS,
    kernel("dm_loss", "squared_error"),
    _save_squared,
    _squared_gradient,
    Measure("fake_score_loss", "fwd", flops=3),
)


def squared_error(
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
    backend: str,
) -> Tensor:
    """[B] sums, see above; p alone gets a gradient."""
    small = _as_fp32(coefficients), _as_fp32(frame_mask)
    sums: Tensor = _squared_error(p.contiguous(), _dense(target), _dense(x_t), *small, backend)
    return sums
