"""AdamW and the average of its parameters in plain torch, several passes over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from . import AdamWStep


def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: AdamWStep,
    copies: Sequence[Tensor] | None,
) -> None:
    """See :func:`cosmos_distill.ops.adamw_ema`."""
    beta1, beta2 = step.betas
    size = step.lr / (1 - beta1**step.step)
    root = math.sqrt(1 - beta2**step.step)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        param.mul_(1 - step.lr * step.weight_decay)
        exp_avgs[i].lerp_(grad, 1 - beta1)
        exp_avg_sqs[i].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        param.addcdiv_(exp_avgs[i], (exp_avg_sqs[i].sqrt() / root).add_(step.eps), value=-size)
        emas[i].lerp_(param, step.ema_rate)
        if copies is not None:
            copies[i].copy_(param)
