"""Distribution matching on CUDA devices: csrc/dm_loss.cu. See fused.py for the functions' contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda_launch import address, dtype_of, functions, launch

Shape = tuple[int, int, int, int]


def _shape(x: Tensor, frame_mask: Tensor | None = None) -> Shape:
    """Batch, elements of a sample, frames, elements of a frame of one channel."""
    batch = x.shape[0]
    elements = x.shape[1:].numel()
    if frame_mask is None:
        return batch, elements, 1, elements
    return batch, elements, x.shape[2], x.shape[3:].numel()


def _fp32(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _partial(x: Tensor, shape: Shape, sums: int) -> Tensor:
    """Scratch for the sums over chunks of a sample."""
    return _fp32(x, shape[0], functions.latent_chunks(shape), sums)


def _reading(
    x_t: Tensor | None, coefficients: Tensor | None, frame_mask: Tensor | None
) -> tuple[int, int, int]:
    return address(x_t), address(coefficients), address(frame_mask)


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor) -> Tensor:
    x_t = _fp32(x0, *x0.shape)
    launch(
        functions.renoise,
        x0,
        dtype_of(x0),
        _shape(x0),
        x0.data_ptr(),
        eps.data_ptr(),
        address(alpha),
        sigma.data_ptr(),
        x_t.data_ptr(),
    )
    return x_t


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
    shape = _shape(x, frame_mask)
    direction, sums, partial = torch.empty_like(x), _fp32(x, x.shape[0], 3), _partial(x, shape, 3)
    launch(
        functions.vsd,
        x,
        dtype_of(x),
        shape,
        x.data_ptr(),
        teacher.data_ptr(),
        fake.data_ptr(),
        address(uncond),
        guidance,
        _reading(x_t, coefficients, frame_mask),
        direction.data_ptr(),
        sums.data_ptr(),
        partial.data_ptr(),
    )
    return direction, sums


def vsd_gradient(direction: Tensor, slope: Tensor) -> Tensor:
    dx = torch.empty_like(direction)
    launch(
        functions.vsd_gradient,
        direction,
        dtype_of(direction),
        _shape(direction),
        direction.data_ptr(),
        slope.data_ptr(),
        dx.data_ptr(),
    )
    return dx


def squared_error(
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    shape = _shape(p, frame_mask)
    sums, partial = _fp32(p, p.shape[0]), _partial(p, shape, 1)
    launch(
        functions.squared_error,
        p,
        dtype_of(p),
        shape,
        p.data_ptr(),
        target.data_ptr(),
        _reading(x_t, coefficients, frame_mask),
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
    dp, grad = torch.empty_like(p), grad.contiguous()
    launch(
        functions.squared_error_gradient,
        p,
        dtype_of(p),
        _shape(p, frame_mask),
        grad.data_ptr(),
        p.data_ptr(),
        target.data_ptr(),
        _reading(x_t, coefficients, frame_mask),
        dp.data_ptr(),
    )
    return dp
