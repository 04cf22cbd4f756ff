"""Fused operators as torch operators: what torch.compile, checkpoint policies and DTensor need to see.

An operator is its declaration (:mod:`.declaration`), its kernel and, where it has one, its gradient. From
these come two ways to call it with the same arithmetic: the registered torch operator
``torch.ops.cosmos_distill.<name>``, and, for plain eager calls, a direct one that skips the dispatcher, which
costs more than a small network's whole operator.

The last argument of every operator is the name of the backend whose kernel runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .declaration import Kinds, Measure, declare

NAMESPACE = "cosmos_distill"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Types of tensors with memory of their own; subclasses may stand for tensors elsewhere."""

Operator = Callable[..., Any]


@cache
def kernels(folder: str, backend: str) -> ModuleType:
    """The module with the kernels of one backend for the operators of one folder.

    Raises:
        ImportError: what it is compiled from is missing.
    """
    package = __name__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{folder}.{backend}")


def kernel(folder: str, function: str) -> Operator:
    """A callable that passes its arguments to ``function`` of the backend named by the last of them."""

    def run(*args: Any) -> Any:
        return getattr(kernels(folder, args[-1]), function)(*args[:-1])

    return run


def import_every_operator() -> None:
    """Import all folders with operators, which registers them."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    for module in dict.fromkeys(package.HOMES.values()):
        importlib.import_module(f"{package.__name__}.{module}")


def introduce_to_dtensor() -> None:
    """Tell DTensor, where somebody uses it, how the operators may be sharded."""
    if "torch.distributed.tensor" in sys.modules:
        importlib.import_module(f"{__package__}.dtensor")


def wanted(ctx: Any, *positions: int) -> int:
    """Which of the inputs at these positions a gradient is asked for, in bits, the first in the lowest: what
    a gradient takes as its ``wanted``."""
    return sum(bool(ctx.needs_input_grad[position]) << i for i, position in enumerate(positions))


def is_wanted(bits: int, i: int) -> bool:
    """Whether the i-th result of a gradient is."""
    return bool(bits >> i & 1)


def where_wanted(bits: int, results: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What autograd is handed: None in the place of what was not computed."""
    return tuple(one if is_wanted(bits, i) else None for i, one in enumerate(results))


def _watched(args: Sequence[Any]) -> bool:
    """Somebody has to see the operator itself: a tracer, a dispatch mode (activation checkpoint policies,
    fake tensors), a transform of torch.func, the profiler, or a tensor subclass."""
    if torch.compiler.is_compiling():
        return True
    for arg in args:
        if type(arg) in PLAIN:
            if arg.is_neg():  # holds its values with the sign flipped, which a kernel would not know
                return True
        elif isinstance(arg, Tensor):
            introduce_to_dtensor()
            return True
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._profiler_enabled()
    )


def derivatives(*tensors: Tensor | None) -> tuple[str, ...]:
    """What is asked for beside results and their gradients, in words: no kernel has it, plain torch does. Of
    a graph that is traced nothing is known."""
    inside_func = torch._C._functorch.peek_interpreter_stack() is not None
    if (forward_ad._current_level < 0 and not inside_func) or torch.compiler.is_compiling():
        return ()
    if forward_ad._current_level >= 0 and _has_tangents(tensors):
        return (FORWARD_MODE,)
    return (BY_FUNC,) if inside_func and _differentiated(tensors) else ()


FORWARD_MODE = "forward-mode derivative"
BY_FUNC = "derivative by torch.func"


def _has_tangents(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args)


def _refuse_tangents(name: str, args: tuple[Any, ...]) -> None:
    # torch's own wrappers of registered operators would drop them silently.
    if _has_tangents(args):
        raise NotImplementedError(
            f"{NAMESPACE}::{name} has no forward-mode derivative: pass backend='reference' for one"
        )


def _refuse_transforms(name: str, args: tuple[Any, ...]) -> None:
    # torch's own wrappers of registered operators fail in those transforms of torch.func that differentiate,
    # and say nothing of what would not.
    if not torch.compiler.is_compiling() and _differentiated(args):
        raise NotImplementedError(
            f"{NAMESPACE}::{name} has no derivative under torch.func: pass backend='reference' for one"
        )


def _differentiated(args: Sequence[Any]) -> bool:
    """By a transform of torch.func."""
    if not torch.is_grad_enabled():
        return False
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or ()
    differentiated = any(level.key() != functorch.TransformType.Vmap for level in levels)
    return differentiated and any(isinstance(a, Tensor) and _learns_inside(a) for a in args)


def _learns_inside(x: Tensor) -> bool:
    """x, or a tensor that it wraps for a transform of torch.func, requires a gradient."""
    while not x.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def define(text: str, kinds: Kinds, run: Operator, measure: Measure | None = None) -> Operator:
    """Register an operator without gradient: asking for one raises.

    Args:
        text: see :mod:`.declaration`.
        kinds: those of its tensors.
        run: does the work on tensors that have memory; its last argument is the name of the backend.
        measure: what its kernels are measured by, if they are.
    """
    declared = declare(text, kinds, measure)
    name = declared.name

    def no_gradient(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"{NAMESPACE}::{name} is not differentiable. Where it is the gradient of an operator, this is a "
            "second derivative: pass backend='reference' to that operator for one"
        )

    registered = _register(declared.schema, run, declared.shapes)
    _register_gradient(name, no_gradient, None)

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if _watched(args):
            _refuse_transforms(name, args)
            return registered(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return registered(*args)
        return run(*args)

    return call


def define_differentiable(
    text: str, kinds: Kinds, run: Operator, save: Operator, gradient: Operator, measure: Measure | None = None
) -> Operator:
    """Register an operator with its gradient.

    Args:
        text: see :func:`define`.
        kinds: see :func:`define`.
        run: see :func:`define`.
        save: ``save(ctx, inputs, output)`` keeps what the gradient needs, as in ``setup_context``.
        gradient: ``gradient(ctx, *grads)``, one result per argument; grads may be None. Made of operators
            of :func:`define`, it is not differentiable itself.
        measure: see :func:`define`.
    """
    declared = declare(text, kinds, measure)
    name = declared.name
    registered = _register(declared.schema, run, declared.shapes)
    _register_gradient(name, gradient, save)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = run(*args)
            save(ctx, args, output)
            return output

        backward: Any = staticmethod(gradient)

    Direct.__name__ = f"{name}_direct"

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if _watched(args):
            _refuse_transforms(name, args)
            return registered(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Direct.apply(*args)
        return run(*args)

    return call


def define_in_place(schema: str, run: Operator) -> Operator:
    """Register an operator that returns nothing, not to be called where gradients are recorded.

    Args:
        schema: of torch.library, ``name(Tensor(a!)[] xs, ..., str backend) -> ()``: what is written to is
            marked, and all tensors are in lists.
        run: does the work on tensors that have memory, and counts up the versions of what it writes to.
    """
    registered = _register(schema, run, lambda *_: None)

    def call(*args: Any) -> None:
        if _watched([tensor for arg in args if isinstance(arg, list) for tensor in arg]):
            registered(*args)
        else:
            run(*args)

    return call


def _register(schema: str, run: Operator, shapes: Operator) -> Operator:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_LIBRARY)
    registered: Operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    return registered


def _register_gradient(name: str, gradient: Operator, save: Operator | None) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # called with these names
        if save is not None:
            save(ctx, inputs, output)

    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", gradient, setup_context=setup_context, lib=_LIBRARY
    )
