"""Plain torch, in fp32 or, for fp64 tensors, fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def renoise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    x0, eps, sigma = _wide(x0, eps, sigma)
    return x0 + sigma.reshape(-1, *(1,) * (x0.dim() - 1)) * eps


def vsd_loss(x0_student: Tensor, x0_teacher: Tensor, x0_fake: Tensor, floor: float) -> Tensor:
    x, teacher, fake = _wide(x0_student, x0_teacher, x0_fake)
    with torch.no_grad():
        normaliser = _mean((x - teacher).abs()).clamp(min=floor)
        v = (fake - teacher) / normaliser.reshape(-1, *(1,) * (x.dim() - 1))
        target = x - v
    return 0.5 * _mean((x - target).square())


def fake_score_loss(x0_fake: Tensor, x0_student: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    fake, x, sigma = _wide(x0_fake, x0_student, sigma)
    error = _mean((x.detach() - fake).square())
    return error / sigma.square() if prediction == "eps" else error
