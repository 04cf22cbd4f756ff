"""Fused operators as torch operators: what torch.compile, checkpoint policies and DTensor need to see.

An operator is its schema, its kernel, the shapes it returns and, where it has one, its gradient. From these
come two ways to call it with the same arithmetic: the registered torch operator
``torch.ops.cosmos_distill.<name>``, and, for plain eager calls, a direct one that skips the dispatcher,
which costs more than a small network's whole operator.

The last argument of every operator is the name of the backend whose kernel runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAMESPACE = "cosmos_distill"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_PLAIN = frozenset({Tensor, torch.nn.Parameter})

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
        *rest, backend = args
        return getattr(kernels(folder, backend), function)(*rest)

    return run


def _direct(args: tuple[Any, ...]) -> bool:
    """Nobody is watching: the dispatcher would only pass the call on to the kernel."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(a) in _PLAIN for a in args if isinstance(a, Tensor))


def define(schema: str, run: Operator, shapes: Operator) -> Operator:
    """Register an operator without gradient.

    Args:
        schema: of torch.library, ``name(Tensor x, ..., str backend) -> (Tensor, ...)``.
        run: does the work on tensors that have memory.
        shapes: same arguments, returns empty tensors of the results' shapes, dtypes and devices.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_LIBRARY)
    registered = getattr(getattr(torch.ops, NAMESPACE), name)

    def call(*args: Any) -> Any:
        return run(*args) if _direct(args) else registered(*args)

    return call


def define_differentiable(
    schema: str, run: Operator, shapes: Operator, save: Operator, gradient: Operator
) -> Operator:
    """Register an operator with its gradient.

    Args:
        schema: see :func:`define`.
        run: see :func:`define`.
        shapes: see :func:`define`.
        save: ``save(ctx, inputs, output)`` keeps what the gradient needs, as in ``setup_context``.
        gradient: ``gradient(ctx, *grads)``, one result per argument; grads may be None. It is not
            differentiable itself.
    """
    name = schema.partition("(")[0]
    define(schema, run, shapes)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradient, setup_context=save, lib=_LIBRARY)
    registered = getattr(getattr(torch.ops, NAMESPACE), name)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = run(*args)
            save(ctx, args, output)
            return output

        backward: Any = staticmethod(once_differentiable(gradient))

    Direct.__name__ = f"{name}_direct"

    def call(*args: Any) -> Any:
        if not _direct(args):
            return registered(*args)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return Direct.apply(*args)
        return run(*args)

    return call
