"""AdamW and the average of its parameters on the CPU: csrc/adamw.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..compiled import kernels

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
    groups = (params, grads, exp_avgs, exp_avg_sqs, emas, copies or ())
    kernels.adamw_ema(
        [[tensor.data_ptr() for tensor in group] for group in groups],
        [param.numel() for param in params],
        1 - step.lr * step.weight_decay,
        1 - beta1,
        beta2,
        1 - beta2,
        step.lr / (1 - beta1**step.step),
        1 / math.sqrt(1 - beta2**step.step),
        step.eps,
        step.ema_rate,
    )
