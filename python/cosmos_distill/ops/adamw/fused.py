"""AdamW and the average of its parameters as a fused operator, for every backend with kernels of its own.

A backend's module offers one function, which returns nothing and writes into all tensors but the gradients:

    adamw_ema(params, grads, exp_avgs, exp_avg_sqs, emas, copies, step, lr, ema_rate, beta1, beta2, eps,
              weight_decay)

Tensors are contiguous fp32, copies bf16, and there may be none. Autograd has to hear of what has changed: the
versions of what is written to are counted up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..library import define_in_place, kernel

if TYPE_CHECKING:
    from . import AdamWStep

_adamw_ema = define_in_place(
    "adamw_ema(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor(d!)[] emas, Tensor(e!)[] copies, SymInt step, float lr, float ema_rate, float beta1,"
    " float beta2, float eps, float weight_decay, str backend) -> ()",
    kernel("adamw", "adamw_ema"),
)


def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: AdamWStep,
    copies: Sequence[Tensor] | None,
    backend: str,
) -> None:
    """See :func:`cosmos_distill.ops.adamw_ema`."""
    groups = [list(group) for group in (params, grads, exp_avgs, exp_avg_sqs, emas, copies or ())]
    numbers = (step.step, step.lr, step.ema_rate, *step.betas, step.eps, step.weight_decay)
    _adamw_ema(*groups, *numbers, backend)
