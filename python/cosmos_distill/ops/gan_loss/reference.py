"""Plain torch, in fp32 or, for fp64 tensors, fp64."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _softplus_mean(logits: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.softplus(wide).reshape(wide.shape[0], math.prod(wide.shape[1:])).mean(1)


def generator_loss(fake: Tensor) -> Tensor:
    return _softplus_mean(-fake)


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    return _softplus_mean(fake) + _softplus_mean(-real)
