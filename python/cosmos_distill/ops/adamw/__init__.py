"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and an exponential moving average of its parameters in
one pass over memory: 9 tensors cross it instead of 10, in one parallel region for all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import registry
from ..checks import beside, floating, like, number, typed
from . import fused, reference

__all__ = ["AdamWStep", "adamw_ema"]

registry.serve("adamw", adamw_ema=(replace(registry.CPU, dtypes=(torch.float32,)), registry.REFERENCE))


@dataclass(frozen=True)
class AdamWStep:
    """The numbers of one step; those of torch.optim.AdamW go by the same names."""

    step: int
    """Of this update, counted from 1: what the moments are corrected by."""
    lr: float
    ema_rate: float
    """Share of the new parameters in their average, 1 - decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor],
    step: AdamWStep,
    *,
    copies: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> None:
    """Update ``params``, both moments and ``emas`` in place, as torch.optim.AdamW and then
    ``ema += ema_rate * (param - ema)`` would.

    Args:
        params: master parameters, contiguous fp32, of any shapes, all on one device.
        grads: like params.
        exp_avgs: first moments, like params; zero before the first step.
        exp_avg_sqs: second moments, likewise.
        emas: averages, like params.
        step: the step's numbers.
        copies: bf16 tensors that receive the new parameters, rounded.
        backend: None picks one; a name insists on it (see :mod:`cosmos_distill.ops.registry`).

    Raises:
        ValueError: a list has another length or a tensor another shape, dtype or device than it must, is
            not contiguous or of a subclass (of a DTensor pass ``.to_local()``), the step is below 1 or its
            eps negative; the message names the argument.
        BackendUnavailable: the backend asked for cannot serve these tensors.
    """
    _check_numbers(step)
    for i, param in enumerate(params):
        floating(f"params[{i}]", param)
        beside(f"params[{i}]", param, "params[0]", params[0])
    groups = {
        "params": params,
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "emas": emas,
    }
    for name, group in groups.items():
        _check(name, group, params, torch.float32)
    if copies is not None:
        _check("copies", copies, params, torch.bfloat16)
    if not params:
        return
    chosen = registry.pick("adamw_ema", backend, *params)
    with torch.no_grad():
        if chosen == "reference":
            reference.adamw_ema(params, grads, exp_avgs, exp_avg_sqs, emas, step, copies)
        else:
            fused.adamw_ema(params, grads, exp_avgs, exp_avg_sqs, emas, step, copies, chosen)


def _check_numbers(step: AdamWStep) -> None:
    if not isinstance(step, AdamWStep):
        raise ValueError(f"step must be an AdamWStep, not {type(step).__name__}")
    number("step", step.step)
    if step.step < 1 or int(step.step) != step.step:
        raise ValueError(f"step must be counted from 1, not {step.step}")
    number("lr", step.lr)
    number("ema_rate", step.ema_rate)
    number("eps", step.eps, least=0)
    number("weight_decay", step.weight_decay)
    if not isinstance(step.betas, Sequence) or len(step.betas) != 2:
        raise ValueError(f"betas must be two numbers, not {step.betas!r}")
    for i, beta in enumerate(step.betas):
        number(f"betas[{i}]", beta, least=0)
        if beta >= 1:
            raise ValueError(f"betas[{i}] must be below 1, not {beta}")


def _check(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], dtype: torch.dtype) -> None:
    if len(tensors) != len(params):
        raise ValueError(f"{name} must be {len(params)} tensors, one per parameter, not {len(tensors)}")
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        like(f"{name}[{i}]", tensor, param.shape, f"params[{i}]", param)
        if hasattr(type(tensor), "__tensor_flatten__"):  # made of other tensors, unlike those of a tracer
            raise ValueError(
                f"{name}[{i}] must be a plain tensor, for it is updated where it is, not "
                f"{type(tensor).__name__}: pass .to_local() of a DTensor"
            )
        typed(f"{name}[{i}]", tensor, dtype)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}[{i}] must be contiguous: it is updated where it is")
