"""AdamW and the average of its parameters on the CPU: csrc/adamw.cpp. See fused.py for what the function
takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from torch import Tensor
from torch.autograd.graph import increment_version

from ..compiled import kernels


def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    copies: Sequence[Tensor],
    step: int,
    lr: float,
    ema_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    kernels.adamw_ema(
        [
            [tensor.data_ptr() for tensor in group]
            for group in (params, grads, exp_avgs, exp_avg_sqs, emas, copies)
        ],
        [param.numel() for param in params],
        1 - lr * weight_decay,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        eps,
        ema_rate,
    )
    increment_version(chain(params, exp_avgs, exp_avg_sqs, emas, copies))
