"""Exponents of attention in Triton: scores times a unit, less the largest or the log-sum-exp of their row.

Queries of 16 bits cannot hold the scale. It is part of the unit, with log2(e): an exponent is then one
multiply-add, and its exponential one instruction.

fp32 queries come scaled, as in torch, and exponents are natural, the unit 1. What was rounded in a row's
largest score was so in its log-sum-exp too, and falls out of their difference. In units of log2 it does not,
and among scores of some hundreds probabilities would be wrong in their fifth digit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


def scaled(q: Tensor, scale: float) -> tuple[Tensor, float, float]:
    """Queries as the kernels take them, what is left of the scale, and the unit of the scores."""
    return (q * scale, 1.0, 1.0) if q.dtype == torch.float32 else (q, scale, scale * _LOG2E.value)


@triton.jit
def exponential(exponent, NATURAL: tl.constexpr):
    if NATURAL:
        exponent = exponent * _LOG2E
    return tl.math.exp2(exponent)


@triton.jit
def to_lse(peak, weight, NATURAL: tl.constexpr):
    """Log-sum-exp from the largest exponent, and the sum of what the exponentials are beside it."""
    if NATURAL:
        return peak + tl.log(weight)
    else:
        return (peak + tl.math.log2(weight)) * _LN2


@triton.jit
def from_lse(lse, NATURAL: tl.constexpr):
    """The log-sum-exp as an exponent."""
    if not NATURAL:
        lse = lse * _LOG2E
    return lse
