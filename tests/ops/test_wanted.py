"""Backward computes what ``needs_input_grad`` asks for, and nothing else: counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_distill import ops
from tests.ops.calls import draw, tuple_of

X, M, W = draw(2, 40, 24), draw(2, 24), draw(8)
Q, K = draw(2, 6, 3, 8), draw(2, 5, 3, 8)
CASES: dict[str, tuple[Callable[..., Any], list[Tensor], str]] = {
    "adaln_modulate": (ops.adaln_modulate, [X, M, M + 1], "cpu"),
    "gated_residual": (ops.gated_residual, [X, X + 1, M], "cpu"),
    "gated_residual_adaln": (ops.gated_residual_adaln, [X, X + 1, M, M + 1, M + 2], "cpu"),
    "qk_norm_rope": (ops.qk_norm_rope, [Q, K, W, W + 1], "cpu"),
    "attention": (lambda *a, **b: ops.attention(*a, return_lse=True, **b), [Q, K, K + 1], "tiled"),
}


class Made(TorchDispatchMode):
    """Elements of the results of the gradients of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "cosmos_distill" and "_backward" in str(function):
            self.elements += [x.numel() for x in result]
        return result


def gradients(name: str, learning: set[int]) -> tuple[list[Tensor], list[int], int]:
    """Those of the inputs with these numbers; the elements that backward made; and how many inputs forward
    kept."""
    operator, tensors, backend = CASES[name]
    leaves = [t.clone().requires_grad_(i in learning) for i, t in enumerate(tensors)]
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with Made() as made:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            results = tuple_of(operator(*leaves, backend=backend))
        grads = torch.autograd.grad(
            results, [leaves[i] for i in sorted(learning)], [draw(*r.shape) for r in results]
        )
    inputs = {x.data_ptr() for x in leaves}
    return list(grads), made.elements, sum(1 for where in kept if where in inputs)


@pytest.mark.compiled
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_asked_for_is_not_made(name: str):
    tensors = CASES[name][1]
    everything, all_made, _ = gradients(name, set(range(len(tensors))))
    for i, x in enumerate(tensors):
        (got,), made, _ = gradients(name, {i})
        assert torch.equal(got, everything[i])
        # A residual's own gradient is the one that comes in.
        assert sum(made) == (0 if name == "gated_residual" and i == 0 else x.numel())
        assert sum(made) < sum(all_made)


@pytest.mark.compiled
def test_the_branch_is_kept_for_the_gradient_of_its_gate_alone():
    for name in ("gated_residual", "gated_residual_adaln"):
        assert gradients(name, {1})[2] < gradients(name, {1, 2})[2]


@pytest.mark.compiled
def test_an_unused_norm_costs_no_more_than_the_residual():
    x, y, gate = X.clone().requires_grad_(), X.clone().requires_grad_(), M.clone().requires_grad_()
    with Made() as made:
        x_new, _ = ops.gated_residual_adaln(x, y, gate, M, M, backend="cpu")
        got = torch.autograd.grad(x_new.square().sum(), (x, y, gate))
    assert made.elements == [y.numel(), gate.numel()]
    want = torch.autograd.grad((x + gate[:, None] * y).square().sum(), (x, y, gate))
    torch.testing.assert_close(got, want)


@pytest.mark.compiled
def test_compiled_graphs_leave_it_out_as_well():
    x, m = X.clone().requires_grad_(), M.clone()
    called: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        called.extend(node for node in graph.graph.nodes if "adaln_modulate_backward" in str(node.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    torch.compile(ops.adaln_modulate, fullgraph=True, backend=backend)(x, m, m).sum().backward()
    (node,) = (node for node in called if node.op == "call_function")
    assert node.args[-2] == 0b001
