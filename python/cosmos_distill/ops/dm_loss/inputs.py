"""Raw network outputs as an input of the losses, and checks of all inputs: errors name the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import beside, floating, like

SumOverShards = Callable[[Tensor], Tensor]


class Preconditioned(NamedTuple):
    """Predictions are network outputs F with x0 = c_skip * x_t + c_out * F."""

    x_t: Tensor
    """[B, ...], what the networks saw, before c_in."""
    c_skip: Tensor
    """[B]"""
    c_out: Tensor
    """[B]"""


def x_t_and_coefficients(preconditioned: Preconditioned | None) -> tuple[Tensor | None, Tensor | None]:
    """x_t and [B, 2], at least fp32."""
    if preconditioned is None:
        return None, None
    both = torch.stack([preconditioned.c_skip, preconditioned.c_out], dim=1).detach()
    return preconditioned.x_t.detach(), both.to(torch.promote_types(both.dtype, torch.float32))


def check(first: str, x0: Tensor, **others: Tensor | None) -> None:
    """Latents [B, ...] of one shape, on one device."""
    floating(first, x0)
    if x0.dim() == 0:
        raise ValueError(f"{first} must be [B, ...], not a scalar")
    for name, value in others.items():
        if value is not None:
            like(name, value, x0.shape, first, x0)


def check_per_sample(x0: Tensor, **others: Tensor | None) -> None:
    """One number per sample, [B], beside the latent."""
    for name, value in others.items():
        if value is not None:
            floating(name, value)
            if value.shape != x0.shape[:1]:
                raise ValueError(f"{name} must be [{x0.shape[0]}], one per sample, not {list(value.shape)}")
            beside(name, value, "the latent", x0)


def check_preconditioned(first: str, x0: Tensor, preconditioned: Preconditioned | None) -> None:
    """Its parts fit the latent."""
    if preconditioned is not None:
        if not isinstance(preconditioned, Preconditioned):
            raise ValueError(f"preconditioned must be a Preconditioned, not {type(preconditioned).__name__}")
        check(first, x0, x_t=preconditioned.x_t)
        check_per_sample(x0, c_skip=preconditioned.c_skip, c_out=preconditioned.c_out)


def check_sum(sum_over_shards: SumOverShards | None) -> None:
    """Something to call, or nothing."""
    if sum_over_shards is not None and not callable(sum_over_shards):
        raise ValueError(
            f"sum_over_shards must be a function of a tensor, not {type(sum_over_shards).__name__}"
        )


def check_mask(x0: Tensor, frame_mask: Tensor | None) -> None:
    """[B, T] for latents [B, C, T, H, W]."""
    if frame_mask is None:
        return
    dense = isinstance(frame_mask, Tensor) and frame_mask.layout is torch.strided and not frame_mask.is_nested
    if not dense or frame_mask.is_complex():
        raise ValueError("frame_mask must be a dense tensor of real numbers")
    if x0.dim() != 5:
        raise ValueError(f"frame_mask needs latents [B, C, T, H, W], not {list(x0.shape)}")
    if frame_mask.shape != (x0.shape[0], x0.shape[2]):
        raise ValueError(f"frame_mask must be {[x0.shape[0], x0.shape[2]]}, not {list(frame_mask.shape)}")
    beside("frame_mask", frame_mask, "the latent", x0)
