"""AdamW of one role, with fp32 masters of half-precision weights and a stateless learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cosmos_distill.config import Optim
from cosmos_distill.parallel import groups

_HALF = (torch.bfloat16, torch.float16)


def learning_rate(optim: Optim, step: int, max_steps: int, updates: int) -> float:
    """Learning rate of optimiser step ``step`` (0-based, all phases counted), before which the role has had
    ``updates`` updates of its own.

    Linear warm-up ``lr * (step+1) / warmup_steps``, then constant, or, with ``optim.cosine``, a half cosine
    from ``lr`` at the end of the warm-up to 0 at ``max_steps``. ``optim.linear`` goes by the role's updates,
    as a scheduler does that is stepped with its optimiser. A function of counts that AdamW keeps anyway, so
    a resumed run needs no scheduler state.
    """
    if (f := optim.linear) is not None:
        if updates < f.warmup_steps:
            return optim.lr * (f.start + (f.peak - f.start) * updates / f.warmup_steps)
        left = max(0.0, (f.cycle_steps - updates) / f.cycle_steps)
        return optim.lr * (f.end + (f.peak - f.end) * left)
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if not optim.cosine:
        return optim.lr
    span = max(1, max_steps - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / span)
    return optim.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


class RoleOptimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over the trainable parameters of one network.

    fp32 (or fp64) parameters are updated in place. A bf16 or fp16 parameter gets an fp32 master: its
    gradients are added to the master's as soon as autograd has them (so accumulation over micro-batches does
    not round to half precision, and the half-precision gradient is freed at once), AdamW steps the master,
    and the result is rounded back into the parameter.

    Args:
        network: the role's network; parameters with ``requires_grad`` False now are left out for good.
        optim: the role's settings.
        max_steps: length of the stage, for the cosine.

    Raises:
        ValueError: if the network has no trainable parameter.
    """

    def __init__(self, network: nn.Module, optim: Optim, max_steps: int) -> None:
        self.optim = optim
        self.max_steps = max_steps
        self.updates = 0
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("a trainable role has no parameter with requires_grad: nothing to optimise")
        self.masters: dict[str, Tensor] = {
            name: nn.Parameter(p.detach().float()) if p.dtype in _HALF else p
            for name, p in self.parameters.items()
        }
        self._hooks = [
            p.register_post_accumulate_grad_hook(_move_gradient_to(self.masters[name]))
            for name, p in self.parameters.items()
            if self.masters[name] is not p
        ]
        self._adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    def requires_grad_(self, wanted: bool) -> None:
        """Switch autograd on or off for this role's parameters (frozen ones stay frozen)."""
        for p in self.parameters.values():
            p.requires_grad_(wanted)

    def zero_grad(self) -> None:
        """Drop every gradient; a parameter that gets none in this step is not touched by :meth:`step`."""
        for p, master in zip(self.parameters.values(), self.masters.values(), strict=True):
            p.grad = None
            master.grad = None

    def backward_of(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def reduce(self) -> None:
        for gradient in self._gradients():
            groups.all_sum(gradient, groups.data_group())

    def gradient_norm(self) -> Tensor:
        """L2 norm over all gradients of the role, an fp32 scalar on their device (0 without gradients)."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self._gradients()]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def clip(self, norm: float) -> None:
        """Scale the gradients so that their norm, now ``norm``, is at most ``optim.clip_norm``."""
        limit = self.optim.clip_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(self._gradients(), limit / norm)

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimiser step ``step``."""
        return learning_rate(self.optim, step, self.max_steps, self.updates)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """One AdamW update at the learning rate of ``step``."""
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate(step)
        self._adamw.step()
        halves = [name for name, p in self.parameters.items() if self.masters[name] is not p]
        if halves:
            torch._foreach_copy_([self.parameters[n] for n in halves], [self.masters[n] for n in halves])
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as ``<exp_avg|exp_avg_sq|step|master>/<parameter name>``."""
        saved: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                saved[f"master/{name}"] = master.detach()
            for key, value in self._adamw.state.get(master, {}).items():
                saved[f"{key}/{name}"] = value
        return saved

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors` bit for bit.

        Raises:
            ValueError: if ``saved`` speaks of parameters that this role does not have.
        """
        for key, value in saved.items():
            kind, _, name = key.partition("/")
            if name not in self.masters:
                raise ValueError(f"optimiser state of unknown parameter {name!r}: the network has changed")
            master = self.masters[name]
            if kind == "master":
                master.copy_(value)
            else:
                # torch keeps the fp32 step counter of fused AdamW beside the parameter; assigning the state
                # directly avoids the dtype casts of load_state_dict.
                self._adamw.state[master][kind] = value.to(master.device, copy=True)
                if kind == "step":  # a parameter without a gradient now and then has fewer than the role
                    self.updates = max(self.updates, int(value))

    def close(self) -> None:
        """Take the gradient hooks off the network and give it back as it was found."""
        for hook in self._hooks:
            hook.remove()
        self.requires_grad_(True)
        self.zero_grad()

    def _gradients(self) -> list[Tensor]:
        return [master.grad for master in self.masters.values() if master.grad is not None]


def _move_gradient_to(master: Tensor):  # type: ignore[no-untyped-def]
    def hook(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return hook
