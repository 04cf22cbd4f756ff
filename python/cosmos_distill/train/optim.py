"""AdamW of one role, with fp32 masters of half-precision weights and a stateless learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.config import Optim, Parallel
from cosmos_distill.parallel import data, groups
from cosmos_distill.parallel.fsdp import local
from cosmos_distill.parallel.parts import Part, parts_of
from cosmos_distill.parallel.share import Span
from cosmos_distill.train.checkpoint import Piece, flat_piece, piece, whole


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

    fp32 (or fp64) parameters are updated in place. A bf16 or fp16 parameter has an fp32 master: gradients are
    accumulated in fp32, AdamW steps the master, and the result is rounded back into the parameter. Under data
    parallelism a rank steps its share (:mod:`cosmos_distill.parallel.data`) and the calls marked collective
    are made by all ranks.

    Args:
        network: the role's network; parameters with ``requires_grad`` False now are left out for good.
        optim: the role's settings.
        max_steps: length of the stage, for the cosine.
        parallel: how data-parallel ranks share the work; None: as the layout in force says.

    Raises:
        ValueError: if the network has no trainable parameter.
    """

    def __init__(
        self, network: nn.Module, optim: Optim, max_steps: int, parallel: Parallel | None = None
    ) -> None:
        self.optim = optim
        self.max_steps = max_steps
        self.updates = 0
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError("a trainable role has no parameter with requires_grad: nothing to optimise")
        self.share = data.share_of(network, parallel or groups.layout())
        self.parameters = self.share.parameters
        self.masters = self.share.masters
        self._adamw = torch.optim.AdamW(
            # A group, because a rank may have a share of nothing.
            [{"params": [master for master in self.masters.values() if master.numel()]}],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    def requires_grad_(self, wanted: bool) -> None:
        """Switch autograd on or off for this role's parameters (frozen ones stay frozen)."""
        self.share.requires_grad_(wanted)

    def zero_grad(self) -> None:
        """Drop every gradient; a parameter that gets none in this step is not touched by :meth:`step`."""
        self.share.zero_grad()

    def backward_of(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; ``last``: of the step's last."""
        return self.share.backward_of(last)

    def reduce(self) -> None:
        """After the last backward of a step: sum the gradients over all ranks. Collective."""
        self.share.reduce()

    def gradient_norm(self) -> Tensor:
        """L2 norm over all gradients of the role, an fp32 scalar on their device (0 without gradients), the
        same on all ranks. Collective."""
        return self.share.gradient_norm()

    def clip(self, norm: float) -> None:
        """Scale the gradients so that their norm, now ``norm``, is at most ``optim.clip_norm``."""
        limit = self.optim.clip_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(self.share.gradients(), limit / norm)

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimiser step ``step``."""
        return learning_rate(self.optim, step, self.max_steps, self.updates)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """One AdamW update at the learning rate of ``step``. Collective."""
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate(step)
        self._adamw.step()
        self.share.publish()
        self.updates += 1

    @torch.no_grad()
    def align(self, other: RoleOptimizer, kept: float) -> None:
        """``weights <- kept * weights + (1 - kept) * other's``, of masters where there are any. Collective.

        The moments stay as they are: they are of gradients, which change as slowly as the weights do.

        Raises:
            ValueError: the other role trains other parameters, or a rank holds another share of them.
        """
        if self.share.spans != other.share.spans:
            raise ValueError("weights move towards those of a network that trains the same parameters")
        names = [name for name, master in self.masters.items() if master.numel()]
        own, theirs = ([masters[name] for name in names] for masters in (self.masters, other.masters))
        torch._foreach_lerp_(own, theirs, 1.0 - kept)
        self.share.publish()

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Make the network compute with ``values``, by name and shaped like the masters. Collective.

        The masters of half-precision parameters stay as they are: writing them back undoes it. Those of
        others are the parameters themselves.
        """
        self.share.write(values)

    def pieces(self, allocate: bool = False) -> dict[str, Piece]:
        """Everything a resumed run needs, as ``<exp_avg|exp_avg_sq|step|master>/<parameter name>``.

        AdamW has no state of a parameter before its first gradient, so there is no such key then.

        Args:
            allocate: make the missing state, zeros, so that there is memory to load everything into. When
                that is done :meth:`after_load` must be called.
        """
        masters = self.pieces_of({name: self.masters[name] for name in self.share.copies})
        found = {f"master/{name}": piece for name, piece in masters.items()}
        for name, master in self.masters.items():
            if not master.numel():
                continue
            state = self._adamw.state.get(master, {})
            if allocate and not state:
                state = self._adamw.state[master] = {
                    "step": torch.zeros((), dtype=torch.float32, device=master.device),
                    "exp_avg": torch.zeros_like(master, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
                }
            for key, value in state.items():
                found[f"{key}/{name}"] = whole(value) if key == "step" else self._piece_of(name, value)
        return found

    def pieces_of(self, values: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Pieces of ``values``, by name and shaped like the masters. A rank has none of a parameter that it
        has no share of."""
        return {name: self._piece_of(name, value) for name, value in values.items() if value.numel()}

    @torch.no_grad()
    def after_load(self, loaded: Collection[str]) -> None:
        """Take what was loaded into :meth:`pieces` as the optimiser's state. Collective.

        Args:
            loaded: keys that were saved, those of other ranks' parameters among them or not. A parameter
                without its moments had not been stepped yet.

        Raises:
            ValueError: if they speak of parameters that this role does not have, or lack one of its masters.
        """
        unknown = {key.partition("/")[2] for key in loaded} - self.masters.keys()
        if unknown and groups.pipeline_group().size() == 1:
            raise ValueError(
                f"optimiser state of unknown parameter {min(unknown)!r}: the network has changed"
            )
        if strangers := [name for name in self.share.copies if f"master/{name}" not in loaded]:
            raise ValueError(
                f"no fp32 master of {strangers[0]!r} was saved: go on in the precision of that run"
            )
        steps = [torch.zeros(1)]
        for name, master in self.masters.items():
            if f"step/{name}" not in loaded:
                self._adamw.state.pop(master, None)
            elif master.numel():
                steps.append(self._adamw.state[master]["step"].reshape(1).cpu())
        # A parameter without a gradient now and then has been stepped less often than the role, and this
        # rank may have a share of none but such.
        most = torch.cat(steps).max()
        if dist.get_world_size() > 1:
            most = most.to(next(iter(self.masters.values())).device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        self.updates = int(most)

    def close(self) -> None:
        """Take the gradient hooks off the network and give it back as it was found."""
        self.share.close()

    def _piece_of(self, name: str, value: Tensor) -> Piece:
        return _piece(value.detach(), self.share.spans[name], self.share.parts[name])


def network_pieces(network: nn.Module) -> dict[str, Piece]:
    """Pieces of all parameters and persistent buffers of a network, however it is spread."""
    parts = parts_of(network)
    held = {name: local(value) for name, value in network.state_dict().items()}
    return {name: _piece(value, span, parts[name]) for name, (value, span) in held.items() if value.numel()}


def _piece(value: Tensor, span: Span, part: Part) -> Piece:
    if tuple(value.shape) == span.shape:
        return piece(value, part)
    return flat_piece(value.view(-1), span.first, span.shape, part)
