"""What a data-parallel rank holds of a role's trainable parameters, and how its gradients become sums.

Losses are sums over samples, so gradients are summed over ranks, never averaged. Whatever works element by
element (AdamW, clipping, averages) works on *masters*: fp32 tensors with this rank's share of the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import Parallelised, parts_of

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Span:
    """The contiguous range of a flattened parameter that a rank holds."""

    first: int
    """Index of its first element."""
    shape: tuple[int, ...]
    """Of the parameter as the network has it: the whole tensor, or this tensor-parallel rank's part."""


class Share(ABC):
    """One rank's share of a role. See the subclasses for the kinds.

    Args:
        network: the role's network.
        parameters: its trainable parameters by name.
        weights: this rank's share of each, the memory itself.
        spans: which share that is.
        shards: ranks of a reduction group that hold different shares; 1: all hold the same.

    Attributes:
        masters: what is stepped, by name, with the summed gradient in ``grad`` after :meth:`reduce`: the
            share of an fp32 (or fp64) parameter itself, or an fp32 copy of that of a bf16 or fp16 one. Empty
            where the rank has nothing of a parameter.
        copies: names whose master is such a copy.
        parts: part of the whole network that each parameter is.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        weights: Mapping[str, Tensor],
        spans: Mapping[str, Span],
        shards: int = 1,
    ) -> None:
        self.parameters = dict(parameters)
        self.weights = dict(weights)
        self.spans = dict(spans)
        self.shards = shards
        parts = parts_of(network)
        self.parts = {name: parts[name] for name in parameters}
        self._copied = [(group, names) for group, names in self._copied_over(network) if names]
        """Groups of ranks that find the same gradients each for itself, and of which parameters."""
        self.copies = [name for name, w in self.weights.items() if w.dtype in HALF]
        self.masters: dict[str, Tensor] = {
            name: nn.Parameter(w.detach().float()) if w.dtype in HALF else self._master_of(w)
            for name, w in self.weights.items()
        }
        self._like: Mapping[str, Tensor] = self.parameters
        """Tensors of the shapes that the gradients of :meth:`_local` have."""

    sums_data_last = False
    """Whether :meth:`reduce_data` adds up what :meth:`reduce` has summed over pipeline ranks."""

    @abstractmethod
    def reduce_data(self) -> None:
        """Put the gradients, summed over the ranks with other samples and other tokens, into the masters."""

    @abstractmethod
    def close(self) -> None:
        """Take all hooks off the parameters, which keep their values and are ready for a plain backward."""

    def requires_grad_(self, wanted: bool) -> None:
        """Switch autograd on or off for the parameters."""
        for p in self.parameters.values():
            p.requires_grad_(wanted)

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for p, master in zip(self.parameters.values(), self.masters.values(), strict=True):
            p.grad = None
            master.grad = None

    def backward_of(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; ``last``: of the step's last."""
        return nullcontext()

    def reduce(self) -> None:
        """After the last backward: sum the gradients over all ranks that have a share of them. Collective.

        A parameter that no rank of its groups found a gradient for has None afterwards. Whether there is one
        may depend on the pipeline rank and on the step, but not on the samples.
        """
        if groups.pipeline_group().size() > 1:
            shared = [name for name in sorted(self.parts) if self.parts[name].sum_pipeline]
            self._set_local(sum_over(groups.pipeline_group(), self._local(shared), self._like))
        self.reduce_data()
        if groups.tensor_group().size() > 1:
            shared = [name for name in sorted(self.parts) if self.parts[name].sum_tensor]
            found = {name: self.masters[name].grad for name in shared}
            for name, gradient in sum_over(groups.tensor_group(), found, self.masters).items():
                self.masters[name].grad = gradient
        for group, names in self._copied:
            _agree(group, [g for name in names if (g := self.masters[name].grad) is not None])

    def gradients(self) -> list[Tensor]:
        """This rank's shares of the gradients, those that there are."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def gradient_norm(self) -> Tensor:
        """L2 norm of the whole network's gradient: an fp32 scalar, the same bits on all ranks. Collective."""
        found = {name: m.grad for name, m in self.masters.items() if m.grad is not None}
        norms = [torch.linalg.vector_norm(g, dtype=_wide(g)) for g in found.values()]
        everyone = groups.gradient_group().size()  # first: it starts a process group where there is none
        if dist.get_world_size() == 1:
            return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        device = next(iter(self.masters.values())).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        if norms:
            # Every rank adds its squares, divided by the number of ranks that add the same.
            same = [self.parts[name].copies * everyone / self.shards for name in found]
            square = torch.stack(norms).double().square()
            total = (square / torch.tensor(same, dtype=torch.float64, device=device)).sum()
        assert dist.group.WORLD is not None
        return groups.all_reduce_sum(total, dist.group.WORLD).sqrt().float()

    @torch.no_grad()
    def publish(self) -> None:
        """Make the network compute with the stepped masters. Collective."""
        if self.copies:
            torch._foreach_copy_(
                [self.weights[name] for name in self.copies], [self.masters[name] for name in self.copies]
            )
        self.gather()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Make the network compute with ``values``, shares like the masters by name, rounded to the weights'
        type. Collective."""
        torch._foreach_copy_([self.weights[name] for name in values], list(values.values()))
        self.gather()

    def _copied_over(self, network: nn.Module) -> Iterator[tuple[dist.ProcessGroup, list[str]]]:
        if not isinstance(network, Parallelised):
            if groups.model_group().size() > 1:
                yield groups.model_group(), list(self.parts)
            return
        if groups.tensor_group().size() > 1:
            yield (
                groups.tensor_group(),
                [name for name, of in self.parts.items() if of.split is None and not of.sum_tensor],
            )
        # Summed over the pipeline, they are still copies of each other, but each of its ranks has then added
        # those of other samples for itself, maybe in another order.
        if groups.pipeline_group().size() > 1 and self.sums_data_last:
            yield groups.pipeline_group(), [name for name, of in self.parts.items() if not of.one_stage]

    def gather(self) -> None:  # noqa: B027 (nothing to do for most kinds)
        """Bring the weights of a network that is whole on every rank together from the shares."""

    def _master_of(self, weight: Tensor) -> Tensor:
        return nn.Parameter(weight.detach())  # the same memory, with a ``grad`` of its own

    def _local(self, names: list[str]) -> dict[str, Tensor | None]:
        """Gradients as they are summed over pipeline ranks."""
        return {name: self.masters[name].grad for name in names}

    def _set_local(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self.masters[name].grad = gradient


class PlainShare(Share):
    """No other rank has a gradient to add: a whole copy with gradients as autograd makes them.

    They exist from their backward pass to the end of the step. Those of a half-precision parameter are added
    to its master's as soon as autograd has them, so that accumulation over micro-batches does not round to
    half precision, and are freed at once.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        spans = {name: Span(0, tuple(p.shape)) for name, p in parameters.items()}
        super().__init__(network, parameters, parameters, spans)
        self._hooks = [
            self.parameters[name].register_post_accumulate_grad_hook(_move_gradient_to(self.masters[name]))
            for name in self.copies
        ]

    def reduce_data(self) -> None:
        pass

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.requires_grad_(True)
        self.zero_grad()

    def _master_of(self, weight: Tensor) -> Tensor:
        return weight


@torch.no_grad()
def _agree(group: dist.ProcessGroup, gradients: list[Tensor]) -> None:
    """Give all ranks of the group the first one's bits of gradients that are the same in theory.

    Kernels that add in no fixed order make them differ, and nothing else would ever make the copies of a
    parameter, or of its moments, equal again.
    """
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if flat.numel():
        dist.broadcast(flat, dist.get_global_rank(group, 0), group=group)
        views = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [v.view_as(g) for v, g in zip(views, gradients, strict=True)])


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)


def sum_over(
    group: dist.ProcessGroup, gradients: Mapping[str, Tensor | None], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients summed over the group in one message, of those names that some rank has one for.

    Args:
        gradients: by name, the same names in the same order on all ranks; None counts as zero.
        like: tensors of the gradients' shapes.
    """
    if not gradients:
        return {}
    parts = [
        like[name].new_zeros(like[name].numel()) if g is None else g.flatten()
        for name, g in gradients.items()
    ]
    parts = [part.float() if part.dtype in HALF else part for part in parts]
    there = [float(g is not None) for g in gradients.values()]
    flat = torch.cat([*parts, torch.tensor(there, dtype=parts[0].dtype, device=parts[0].device)])
    dist.all_reduce(flat, group=group)
    if 0.0 in there:  # only then is the answer of the others worth waiting for
        there = flat[-len(there) :].tolist()
    views = flat.split([part.numel() for part in parts] + [len(there)])
    return {
        name: view.view(like[name].shape)
        for name, view, count in zip(gradients, views, there, strict=False)
        if count
    }


def _move_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return hook
