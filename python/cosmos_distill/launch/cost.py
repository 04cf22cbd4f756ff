"""What a training step costs, counted by running it: the real method over the real networks at their real
size, on the meta device, where nothing is computed, as one rank of whatever layout is in force
(:func:`cosmos_distill.parallel.groups.imagined`).

Counted are floating point operations by role, phase and kind, the bytes that all else reads and writes, what
is sent to other ranks, and the activations that are held. Operators of this package count as what they are on
a GPU, one kernel each.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cosmos_distill.data.batch import Batch
from cosmos_distill.launch.live import Live
from cosmos_distill.launch.sent import sent
from cosmos_distill.methods.base import Method
from cosmos_distill.models.common.blocks import Block
from cosmos_distill.ops import registry
from cosmos_distill.randomness import Noise

if TYPE_CHECKING:
    from torch._ops import OpOverload

Phase = Literal["forward", "recompute", "backward"]
Kind = Literal["product", "attention", "memory"]
OUTSIDE = "losses"
"""Role of what no network does."""
_FREE = {"empty", "empty_like", "empty_strided", "_unsafe_view", "detach", "alias", "new_empty", "lift_fresh"}
"""Operations that move no byte, beside views."""


class Key(NamedTuple):
    """Who does something, when, and what it is."""

    role: str
    phase: Phase
    kind: Kind
    graph: bool
    """Whether the forward pass it belongs to keeps a graph for a backward pass."""


class Amount(NamedTuple):
    """How much of it."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: object) -> Amount:
        assert isinstance(other, Amount)
        return Amount(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Amount:
        """So many of it."""
        return Amount(self.flops * factor, self.bytes * factor)


@dataclass
class Activations:
    """Bytes that a step holds beside weights, gradients and optimiser."""

    kept: int = 0
    """From the forward passes to the backward one, beside the batch."""
    peak: int = 0
    """At the moment of most, the batch among them."""
    peak_with_gradients: int = 0
    """At the moment of most together with gradients that this step is the first to make, in fp32."""


@dataclass
class Count:
    """Everything that one step of a micro-batch does."""

    work: dict[Key, Amount] = field(default_factory=lambda: defaultdict(Amount))
    passes: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(role, with a graph) -> calls of its network."""
    blocks: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """(role, with a graph) -> blocks that these calls ran through, control blocks included."""
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Ranks that share something (``tensor``, ``context``, ``pipeline``, ...) -> bytes that each of them
    sends to the others."""
    activations: Activations = field(default_factory=Activations)

    def total(self, kind: Kind | None = None, phase: Phase | None = None, role: str | None = None) -> Amount:
        """The sum over all keys that fit."""
        fitting = [
            amount
            for key, amount in self.work.items()
            if kind in (None, key.kind) and phase in (None, key.phase) and role in (None, key.role)
        ]
        return sum(fitting, Amount())

    def __add__(self, other: Count) -> Count:
        """One after the other; of activations the most of either."""
        found = Count(passes=self.passes + other.passes, blocks=self.blocks + other.blocks)
        for one in (self, other):
            for key, amount in one.work.items():
                found.work[key] += amount
            for group, count in one.sent.items():
                found.sent[group] += count
            for name, count in vars(one.activations).items():
                setattr(found.activations, name, max(count, getattr(found.activations, name)))
        return found

    def times(self, factor: float) -> Count:
        """So many steps like it (or, for a mean, a part of one)."""
        found = Count(
            passes=Counter({key: value * factor for key, value in self.passes.items()}),
            blocks=Counter({key: value * factor for key, value in self.blocks.items()}),
        )
        for key, amount in self.work.items():
            found.work[key] = amount.times(factor)
        for group, count in self.sent.items():
            found.sent[group] = count * factor
        found.activations = self.activations
        return found


class Step:
    """A step that is being counted: how far, and by whom.

    Attributes:
        count: what it did so far.
        live: what it holds now.
    """

    def __init__(self, roles: Mapping[str, nn.Module]) -> None:
        self.count, self.live = Count(), Live()
        self._roles = _Roles(roles, self)

    @property
    def in_backward(self) -> bool:
        """Whether a backward pass is going on."""
        return _in_backward()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, everything counts."""
        with registry.insisting("triton,reference"), self._roles.watched(), _Counting(self):
            yield

    @contextmanager
    def aside(self) -> Iterator[Live]:
        """Within, nothing enters the count, but one of its own."""
        before = self.count, self.live
        self.count, self.live = Count(), Live(self.live)
        try:
            yield self.live
        finally:
            self.count, self.live = before

    def done(self, phase: Phase, kind: Kind, amount: Amount) -> None:
        """Put work down to whoever is at work."""
        role, graph = self._roles.current()
        self.count.work[Key(role, phase, kind, graph)] += amount

    def done_bytes(self, amount: float) -> None:
        """The same of bytes that are read and written now."""
        self.done(self.phase(), "memory", Amount(0.0, amount))

    def ran_block(self) -> None:
        """Put a block down to whose it is."""
        if not _in_backward():
            self.count.blocks[self._roles.current()[0], torch.is_grad_enabled()] += 1

    def phase(self) -> Phase:
        """That of an operation now."""
        return self._roles.phase()


class _Counting(TorchDispatchMode):
    """Adds what every operation costs."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        step = self._step
        step.live.see(out)
        if func.namespace == "c10d":
            group, size = sent(func, args)
            step.count.sent[group] += size
            return out
        kind, amount = _cost(func, args, kwargs, out)
        if amount.flops or amount.bytes:
            step.done(step.phase(), kind, amount)
        return out


def _cost(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[Kind, Amount]:
    packet = func.overloadpacket
    name = str(packet).rsplit(".", 1)[-1]
    if str(packet).startswith("cosmos_distill.attention"):
        q, k = (args[2], args[3]) if name == "attention_backward" else (args[0], args[1])
        products = (
            5 if name == "attention_backward" else 2
        )  # scores again, and one for each of dv, dp, dq, dk
        flops = 2.0 * products * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * q.shape[3]
        return "attention", Amount(flops, _moved(args, kwargs, out))
    if packet in flop_registry:
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
        return "product", Amount(flops, _moved(args, kwargs, out))
    returns = func._schema.returns
    view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    if view or name in _FREE:
        return "memory", Amount()
    return "memory", Amount(0.0, _moved(args, kwargs, out))


def _moved(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    """Bytes of all tensors that an operation reads and writes, broadcast ones as often as they are stored."""
    return float(sum(_stored(leaf) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)))


def _stored(tensor: Tensor) -> int:
    """Bytes of a tensor's different elements: an expanded axis is stored once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0]
    return math.prod(sizes) * tensor.element_size()


class _Roles:
    """Whose network is at work: forward by its calls, backward since the gradient reached its output."""

    def __init__(self, roles: Mapping[str, nn.Module], step: Step) -> None:
        self._roles, self._step = roles, step
        self._stack: list[tuple[str, bool]] = []
        self._backward = OUTSIDE
        self._again = 0

    def current(self) -> tuple[str, bool]:
        """The role of the operation that is being counted, and whether its pass has a graph."""
        if _in_backward():
            return self._backward, True
        return self._stack[-1] if self._stack else (OUTSIDE, torch.is_grad_enabled())

    def phase(self) -> Phase:
        """In a backward pass a block that is called is one that is computed again."""
        if not _in_backward():
            return "forward"
        return "recompute" if self._again else "backward"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, calls of the networks are noticed."""
        with ExitStack() as stack:
            for role, network in self._roles.items():
                for handle in self._hooks(role, network):
                    stack.callback(handle.remove)
            yield

    def _hooks(self, role: str, network: nn.Module) -> Iterator[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append((role, torch.is_grad_enabled()))
            self._step.count.passes[role, torch.is_grad_enabled()] += 1

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self._stack.pop()
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(lambda grad: self._reached(role))

        def block(module: nn.Module, args: Any) -> None:
            if _in_backward():
                self._again += 1
            else:
                self._step.ran_block()

        def after_block(module: nn.Module, args: Any, out: Any) -> None:
            if _in_backward():
                self._again -= 1

        yield network.register_forward_pre_hook(enter)
        yield network.register_forward_hook(leave)
        for part in network.modules():
            if isinstance(part, Block):
                yield part.register_forward_pre_hook(block)
                # Recomputation stops in the middle of a block, when it has what it needs.
                yield part.register_forward_hook(after_block, always_call=True)

    def _reached(self, role: str) -> None:
        self._backward = role


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class FixedSteps(Noise):
    """Noise of ``samples`` under which those of the student take ``n`` evaluations."""

    def __init__(self, n: int, samples: int = 1) -> None:
        super().__init__(0, 0, 0, samples)
        self._n = n

    def integer_of_step(self, name: str, low: int, high: int) -> int:
        """``n``, within the bounds."""
        return min(max(self._n, low), high - 1)


def count_step(method: Method, batch: Batch, step: int, n: int = 1, *, every_block: bool = False) -> Count:
    """One optimiser step of one micro-batch, losses and their gradients, without the optimiser.

    Args:
        method: Over networks on the meta device.
        batch: Of the size to count, on the meta device; its random numbers are drawn on the CPU.
        step: Which decides whose phase it is.
        n: Evaluations that the student's samples take.
        every_block: Run every block, in place of one of each kind (:mod:`cosmos_distill.launch.repeated`).
    """
    from cosmos_distill.launch.repeated import repeated

    counted = Step(method.roles)
    live, networks = counted.live, list(method.roles.values())
    for network in networks:
        live.leave_out([*network.parameters(), *network.buffers()])
    live.see(list(batch.tensors().values()))
    live.begin()
    batch_alone = live.now
    method.enable_gradients(method.phase(step))
    with ExitStack() as stack:
        for network in networks:
            for handle in taken_away(network, live):
                stack.callback(handle.remove)
        if not every_block:
            stack.enter_context(repeated(networks, counted))
        stack.enter_context(counted.watched())
        losses = method.losses(batch, step, FixedSteps(n, batch.latents.shape[0]))
        counted.count.activations.kept = live.now - batch_alone
        losses["total"].sum().backward()
    held = counted.count.activations
    held.peak, held.peak_with_gradients = live.peak, live.peak_beside
    return counted.count


def taken_away(network: nn.Module, live: Live) -> Iterator[Any]:
    """Put hooks on a network that take gradients away as soon as they are there: a rank keeps its share of
    them, in fp32, and that depends on how data-parallel ranks share the work."""

    def take(parameter: Tensor) -> None:
        parameter.grad = None
        live.gradient(parameter)

    for parameter in network.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(take)
