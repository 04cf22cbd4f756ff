"""Distribution matching on CUDA devices: csrc/dm_loss.cu. See fused.py for what the functions take
and return."""

from __future__ import annotations

from torch import Tensor

from ..cuda_launch import dtype_of, functions, launch
from ..elements import address, new_fp32
from ..strides import new_like


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Dtype, samples and elements of each."""
    return dtype_of(x), x.shape[0], x.shape[1:].numel()


def _mask(frame_mask: Tensor | None, x: Tensor) -> tuple[int, int, int]:
    """Address, frames, and elements that a frame has in each channel."""
    return (0, 0, 0) if frame_mask is None else (frame_mask.data_ptr(), x.shape[2], x.shape[3] * x.shape[4])


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor) -> Tensor:
    out = new_fp32(x0, *x0.shape)
    launch(
        functions.renoise,
        x0,
        *_layout(x0),
        x0.data_ptr(),
        eps.data_ptr(),
        address(alpha),
        sigma.data_ptr(),
        out.data_ptr(),
    )
    return out


def vsd(
    x: Tensor,
    teacher: Tensor,
    fake: Tensor,
    uncond: Tensor | None,
    x_t: Tensor | None,
    guidance: float,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    direction, sums = new_like(x), new_fp32(x, x.shape[0], 3)
    partial = new_fp32(x, x.shape[0], functions.dm_loss_blocks(x.shape[1:].numel()), 3)
    launch(
        functions.vsd,
        x,
        *_layout(x),
        x.data_ptr(),
        teacher.data_ptr(),
        fake.data_ptr(),
        address(uncond),
        address(x_t),
        guidance,
        address(coefficients),
        *_mask(frame_mask, x),
        direction.data_ptr(),
        sums.data_ptr(),
        partial.data_ptr(),
    )
    return direction, sums


def vsd_gradient(direction: Tensor, slope: Tensor) -> Tensor:
    out = new_like(direction)
    launch(
        functions.vsd_gradient,
        direction,
        *_layout(direction),
        direction.data_ptr(),
        slope.data_ptr(),
        out.data_ptr(),
    )
    return out


def squared_error(
    p: Tensor, target: Tensor, x_t: Tensor | None, coefficients: Tensor | None, frame_mask: Tensor | None
) -> Tensor:
    sums = new_fp32(p, p.shape[0])
    partial = new_fp32(p, p.shape[0], functions.dm_loss_blocks(p.shape[1:].numel()))
    launch(
        functions.squared_error,
        p,
        *_layout(p),
        p.data_ptr(),
        target.data_ptr(),
        address(x_t),
        address(coefficients),
        *_mask(frame_mask, p),
        0,
        0,
        sums.data_ptr(),
        partial.data_ptr(),
    )
    return sums


def squared_error_gradient(
    grad: Tensor,
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    dp = new_like(p)
    launch(
        functions.squared_error,
        p,
        *_layout(p),
        p.data_ptr(),
        target.data_ptr(),
        address(x_t),
        address(coefficients),
        *_mask(frame_mask, p),
        grad.data_ptr(),
        dp.data_ptr(),
        0,
        0,
    )
    return dp
