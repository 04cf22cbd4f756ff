"""Distribution matching on the CPU: csrc/dm_loss.cpp. See fused.py for what the functions take and return.

The results do not depend on the number of threads.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..compiled import kernels
from ..elements import ELEMENTS, address, new_fp32
from ..strides import new_like


def _shape(x: Tensor, frame_mask: Tensor | None = None) -> tuple[int, int, int, int]:
    """(samples, segments of one, elements of a segment, frames that segments take turns to belong to)."""
    if frame_mask is None:
        return x.shape[0], 1, math.prod(x.shape[1:]), 1
    batch, channels, frames, height, width = x.shape
    return batch, channels * frames, height * width, frames


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor) -> Tensor:
    out = new_fp32(x0, *x0.shape)
    kernels.renoise(
        ELEMENTS[x0.dtype],
        _shape(x0),
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
    kernels.vsd(
        ELEMENTS[x.dtype],
        _shape(x, frame_mask),
        address(frame_mask),
        x.data_ptr(),
        teacher.data_ptr(),
        fake.data_ptr(),
        address(uncond),
        address(x_t),
        address(coefficients),
        guidance,
        direction.data_ptr(),
        sums.data_ptr(),
    )
    return direction, sums


def vsd_gradient(direction: Tensor, slope: Tensor) -> Tensor:
    out = new_like(direction)
    kernels.vsd_gradient(
        ELEMENTS[direction.dtype], _shape(direction), direction.data_ptr(), slope.data_ptr(), out.data_ptr()
    )
    return out


def squared_error(
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    sums = new_fp32(p, p.shape[0])
    kernels.squared_error(
        ELEMENTS[p.dtype],
        _shape(p, frame_mask),
        address(frame_mask),
        p.data_ptr(),
        target.data_ptr(),
        address(x_t),
        address(coefficients),
        sums.data_ptr(),
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
    out = new_like(p)
    kernels.squared_error_gradient(
        ELEMENTS[p.dtype],
        _shape(p, frame_mask),
        address(frame_mask),
        grad.data_ptr(),
        p.data_ptr(),
        target.data_ptr(),
        address(x_t),
        address(coefficients),
        out.data_ptr(),
    )
    return out
