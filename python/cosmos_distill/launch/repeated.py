"""Blocks are alike: one of each kind of call is run and counted, and all others of that kind are taken to do
and to hold the same, which makes counting a large network as cheap as a small one.

A kind is what decides a block's work: its class and sizes, what is recomputed, the shape of the tokens, and
what needs gradients. A block of it is *probed*: three in a row are run, forward and backward, the middle one
is measured, and nothing of it enters the count. Every call is then a node of autograd that holds as many
bytes and returns tensors of the same shapes.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cosmos_distill.launch.live import Live
from cosmos_distill.models.common.dit import Context, Stack

if TYPE_CHECKING:
    from cosmos_distill.launch.cost import Step


@dataclass
class _Window:
    """What happens between two moments."""

    work: dict[tuple[Any, Any], Any] = field(default_factory=dict)
    """(phase, kind) -> how much."""
    sent: dict[str, float] = field(default_factory=dict)
    extra: int = 0
    """Bytes that are held at the moment of most, beyond those at its beginning."""

    def again(self, step: Step) -> None:
        """The same happens once more."""
        for (phase, kind), amount in self.work.items():
            step.done(phase, kind, amount)
        for group, size in self.sent.items():
            step.count.sent[group] += size
        step.live.pulse(self.extra)


@dataclass
class _Kind:
    """What every block of a kind does."""

    forward: _Window
    backward: _Window | None = None
    kept: int = 0
    """Bytes from the forward to the backward pass, beside its input and its output."""
    keeps_input: bool = False
    keeps_context: bool = False


@contextmanager
def repeated(networks: Iterable[nn.Module], step: Step) -> Iterator[None]:
    """Inside the block the blocks of the networks are counted by kind, in place of being run."""
    kinds: dict[Any, _Kind] = {}
    uses = _Uses(step)
    stacks = [module for network in networks for module in network.modules() if isinstance(module, Stack)]
    try:
        for stack in stacks:
            stack.run_block = _Repeater(stack, step, kinds, uses)  # type: ignore[method-assign]
        yield
    finally:
        for stack in stacks:
            vars(stack).pop("run_block", None)


class _Repeater:
    """Takes the place of a stack's ``run_block``."""

    def __init__(self, stack: Stack, step: Step, kinds: dict[Any, _Kind], uses: _Uses) -> None:
        self._stack, self._step, self._kinds, self._uses = stack, step, kinds, uses

    def __call__(self, index: int, h: Tensor, context: Context) -> Tensor:
        stack, step = self._stack, self._step
        block = stack.blocks[index]
        given = [t for t in (context.activated, context.shared, context.places.learned) if t is not None]
        parameters = [p for p in block.parameters() if p.requires_grad]
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in (h, *given, *parameters))
        key = (
            type(block), stack.config, stack.activation_checkpointing if graph else None, h.shape, h.dtype,
            graph, h.requires_grad, len(parameters), tuple(t.requires_grad for t in given), step.in_backward,
        )  # fmt: skip
        if key not in self._kinds:
            self._kinds[key] = _probe(stack, index, h, context, graph, step)
        kind = self._kinds[key]
        step.ran_block()
        kind.forward.again(step)
        if not graph:
            return torch.empty_like(h)
        # The smallest stands for all that a gradient is asked for; they are never there at once.
        anchor = min(parameters, key=Tensor.numel, default=None)
        # A forward pass in the course of a backward one has a backward pass of its own.
        uses = _Uses(step) if step.in_backward else self._uses
        use = _Use(uses, parameters)
        out: Tensor = _Repeated.apply(kind, step, context, use, h, anchor, *given)
        return out


class _Uses:
    """Parameters of a network that is called several times before one backward pass: the gradient of one call
    waits for that of the next."""

    def __init__(self, step: Step) -> None:
        self._step, self._live = step, step.live
        self._left: Counter[Tensor] = Counter()
        self._waiting: set[Tensor] = set()

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """One more call."""
        self._left.update(list(parameters))

    def end(self, parameters: Iterable[Tensor], *, found: bool) -> None:
        """One less, which ``found`` gradients or whose graph was dropped."""
        added = 0
        for p in parameters:
            self._left[p] -= 1
            if found and p in self._waiting:
                added += 3 * p.nbytes  # two are read, their sum is written
            if self._left[p] and found and p not in self._waiting:
                self._waiting.add(p)
                self._live.hold(p.nbytes)
            elif not self._left[p] and p in self._waiting:
                self._waiting.remove(p)
                self._live.hold(-p.nbytes)
            if found and not self._left[p]:
                self._live.gradient(p)
        if added:
            self._step.done_bytes(added)


class _Use:
    """One call, until its backward pass or until its graph is dropped."""

    def __init__(self, uses: _Uses, parameters: Sequence[Tensor]) -> None:
        self._uses, self._parameters = uses, tuple(parameters)
        uses.begin(parameters)

    def end(self, *, found: bool) -> None:
        """It is over; once."""
        parameters, self._parameters = self._parameters, ()
        self._uses.end(parameters, found=found)

    def __del__(self) -> None:
        self.end(found=False)


class _Repeated(torch.autograd.Function):
    """A block of a kind."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: _Kind,
        step: Step,
        context: Context,
        use: _Use,
        h: Tensor,
        *others: Tensor | None,
    ) -> Tensor:
        ctx.kind, ctx.step, ctx.use = kind, step, use
        ctx.held = [context if kind.keeps_context else None]
        ctx.held.append(torch.empty(max(0, kind.kept), dtype=torch.uint8, device=h.device))
        if kind.keeps_input:
            ctx.save_for_backward(h)
        ctx.like = [None if t is None else (t.shape, t.dtype) for t in (h, *others)]
        return torch.empty_like(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kind, step = ctx.kind, ctx.step
        assert kind.backward is not None
        kind.backward.again(step)
        ctx.held.clear()
        ctx.use.end(found=True)
        made = [
            torch.empty(like[0], dtype=like[1], device=grad.device) if needed else None
            for needed, like in zip(ctx.needs_input_grad[4:], ctx.like, strict=True)
        ]
        return None, None, None, None, *made


def _probe(stack: Stack, index: int, h: Tensor, context: Context, graph: bool, step: Step) -> _Kind:
    """Run three blocks like block ``index`` in a row, and measure the middle one."""
    block = stack.blocks[index]

    def run(x: Tensor) -> Tensor:
        stack.blocks[str(index)] = next(unused)
        return Stack.run_block(stack, index, x, _own(context))

    try:
        with step.aside() as live:
            # One for each: gradients of a block that is used twice would wait for each other.
            doubles = [_double(block) for _ in range(3)]
            unused = iter(doubles)
            if graph:
                kind = _differentiated(run, h, step, live)
                kind.keeps_context = stack.activation_checkpointing != "none"
                return kind
            with torch.no_grad():
                x = run(torch.empty_like(h))
                window = _Measured(step, live)
                run(x)
                return _Kind(window.end())
    finally:
        stack.blocks[str(index)] = block


def _differentiated(run: Callable[[Tensor], Tensor], h: Tensor, step: Step, live: Live) -> _Kind:
    x = run(torch.empty_like(h).requires_grad_())
    enters = weakref.ref(x.untyped_storage())
    before, forward = live.now, _Measured(step, live)
    y = run(x)
    forward_window = forward.end()
    begun: list[_Measured] = []
    ended: list[_Window] = []
    y.register_hook(lambda grad: begun.append(_Measured(step, live)))
    x.register_hook(lambda grad: ended.append(begun[0].end()))
    del x
    kept, keeps_input, size = live.now - before, enters() is not None, y.nbytes
    z = run(y)
    del y
    torch.autograd.backward([z], [torch.empty_like(z)])
    return _Kind(forward_window, ended[0], kept - (size if keeps_input else 0), keeps_input)


class _Measured:
    """From its making to its end."""

    def __init__(self, step: Step, live: Live) -> None:
        self._step, self._live = step, live
        self._now, self._peak = live.now, live.peak
        self._work = dict(step.count.work)
        self._sent = dict(step.count.sent)
        live.peak = live.now

    def end(self) -> _Window:
        live, count = self._live, self._step.count
        window = _Window(extra=live.peak - self._now)
        live.peak = max(self._peak, live.peak)
        work: dict[Any, Any] = defaultdict(lambda: None)
        for key, amount in count.work.items():
            before = self._work.get(key)
            more = amount if before is None else amount + before.times(-1)
            if more.flops or more.bytes:
                had = work[key.phase, key.kind]
                work[key.phase, key.kind] = more if had is None else had + more
        window.work = dict(work)
        window.sent = {
            g: n - self._sent.get(g, 0.0) for g, n in count.sent.items() if n > self._sent.get(g, 0)
        }
        return window


def _double(block: nn.Module) -> nn.Module:
    """A block of the same sizes whose gradients are nobody's."""
    made = copy.deepcopy(block)
    for mine, theirs in zip(made.parameters(), block.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        if theirs.requires_grad:
            mine.register_post_accumulate_grad_hook(_drop)
    return made


def _own(context: Context) -> Context:
    """What all blocks are given, without its graph, which a probe must not enter, and apart from that of
    other blocks, the sum of whose gradients is not theirs."""
    learned = context.places.learned
    return context._replace(
        activated=_leaf(context.activated),
        shared=_leaf(context.shared),
        places=context.places._replace(learned=None if learned is None else _leaf(learned)),
    )


def _leaf(tensor: Tensor) -> Tensor:
    if not tensor.requires_grad:
        return tensor
    anchor = torch.empty((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
    found: Tensor = _Dropping.apply(tensor.detach(), anchor)
    return found


class _Dropping(torch.autograd.Function):
    """A tensor whose gradient is asked for, and dropped."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, anchor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
