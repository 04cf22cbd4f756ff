"""Attention through torch's scaled_dot_product_attention (flash, memory-efficient or cuDNN inside).

Where the log-sum-exp is wanted, torch's flash attention for the CPU, which has it. See fused.py for what
``attention`` and ``attention_backward`` take and return.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..strides import dense

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_only(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Output [B, Sq, H, D], on every device, without log-sum-exp; differentiated by torch."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
    return out.transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
    return dense(out.transpose(1, 2)), dense(lse)


def attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # In fp32 whatever the inputs: few CPUs multiply bf16 matrices faster, most several times slower.
    tensors = [x.transpose(1, 2).float() for x in (grad, q, k, v, out)]
    if grad_lse is not None:
        # The gradient of a score is p (grad . v - grad . out + grad_lse). One more channel, 1 in grad, 0 in
        # q, k and v and -grad_lse in out, adds the last term to the second and nothing to anything else.
        one, zero = torch.ones_like(grad_lse), torch.zeros(())
        for i, channel in enumerate((one, zero, zero, zero, -grad_lse)):
            column = channel.expand(tensors[i].shape[:3]).unsqueeze(-1)
            tensors[i] = torch.cat([tensors[i], column], dim=-1)
    grads = _flash_backward(*tensors, lse, 0.0, False, scale=scale)
    dim = q.shape[-1]
    dq, dk, dv = (dense(g[..., :dim].transpose(1, 2).to(q.dtype)) for g in grads)
    return dq, dk, dv
