"""The operators under torch.compile, torch.export, fake tensors and activation-checkpoint policies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cosmos_distill import ops
from cosmos_distill.ops import registry
from tests.ops.calls import (
    assert_compiles_whole,
    assert_fakes_are_like_it,
    assert_traced_as_it_is,
    bit_equal,
    draw,
    public,
)
from tests.ops.layouts import LAYOUTS, with_axes_of_one_element


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


class Block(nn.Module):
    """What stands between two sub-layers of a transformer, twice, around self-attention. [B, 6, 24]"""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(12)), nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor, modulation: Tensor, angles: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        h = ops.adaln_modulate(x, shift, scale, backend=self.backend)
        q, k, v = (y.unflatten(-1, (2, 12)) for y in self.qkv(h).chunk(3, dim=-1))
        q, k = ops.qk_norm_rope(q, k, self.q_norm, self.k_norm, angles=angles, backend=self.backend)
        y = self.out(ops.attention(q, k, v).flatten(-2))
        x, h = ops.gated_residual_adaln(x, y, gate, shift, scale, backend=self.backend)
        return x + h


def inputs(batch: int = 2, frames: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    x, m = draw(batch, 6 * frames, 24).requires_grad_(), draw(batch, 72).requires_grad_()
    return x, m, (draw(frames, 3), draw(2, 1), draw(3, 2))


def make_block(backend: str | None = None) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block(backend)


def learn(block: nn.Module, x: Tensor, m: Tensor, angles: Any) -> list[Tensor]:
    """Output and gradients of inputs and weights."""
    out = block(x, m, angles)
    return [out, *torch.autograd.grad(out, [x, m, *block.parameters()], draw(*out.shape))]


def operators_in(graph: fx.Graph) -> set[str]:
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    return {name.split(".")[1] for name in names if name.startswith("cosmos_distill.")}


OURS = {"adaln_modulate", "qk_norm_rope", "gated_residual_adaln"}


@pytest.mark.compiled
@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="inductor writes code for vectors that torch then has none of: it compiles nothing of anybody's",
)
def test_a_block_compiles_whole_with_inductor():
    block, given = make_block(), inputs()
    got = learn(torch.compile(block, fullgraph=True, dynamic=False), *given)
    torch.testing.assert_close(got, learn(block, *given))


@pytest.mark.compiled
@pytest.mark.parametrize("variable", [None, "cpu,sdpa", "reference"])
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_a_compiled_block_holds_the_operators_of_the_backend_chosen(
    backend: str | None, variable: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(registry.VARIABLE, variable)
    seen: set[str] = set()

    def look(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.update(operators_in(graph.graph))
        return graph

    block, given = make_block(backend), inputs()
    torch.compile(block, fullgraph=True, backend=look)(*given)
    expected = set() if (backend or variable) == "reference" else OURS
    assert seen - {"attention"} == expected


@pytest.mark.parametrize("name", public())
def test_every_operator_compiles_whole(name: str):
    assert_compiles_whole(name)


def test_one_graph_serves_all_sizes():
    counter = CompileCounterWithBackend("aot_eager")
    block = make_block()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch, frames in ((5, 7), (4, 13), (9, 8)):
        given = inputs(batch, frames)
        torch.testing.assert_close(learn(compiled, *given), learn(block, *given))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


def test_head_sizes_may_vary():
    def rotated_and_mixed(q: Tensor, weight: Tensor) -> Tensor:
        q, k = ops.qk_norm_rope(q, q, weight, weight)
        return ops.attention(q, k, k, return_lse=True)[0]

    compiled = torch.compile(rotated_and_mixed, fullgraph=True, dynamic=True, backend="eager")
    for size in (8, 16, 24):
        given = torch.ones(1, 3, 2, size), torch.ones(size)
        torch.testing.assert_close(compiled(*given), rotated_and_mixed(*given))


def test_wrong_arguments_are_named_while_tracing():
    x, m, angles = inputs()
    compiled = torch.compile(make_block(), backend="eager")
    with pytest.raises(ValueError, match=r"shift must be \[2, 24\]"):
        compiled(x, m[:, :69], angles)


@pytest.mark.compiled
def test_compiled_gradients_may_be_scattered():
    """What follows a compiled operator hands back gradients in whatever layout it likes."""
    operator, tensors = public()["gated_residual_adaln"]
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")

    def turned(result: tuple[Tensor, ...]) -> Tensor:
        return sum((r.transpose(1, 2) @ torch.ones(r.shape[1], 3)).square().sum() for r in result)

    got = torch.autograd.grad(turned(compiled(*tensors)), tensors)
    torch.testing.assert_close(got, torch.autograd.grad(turned(operator(*tensors)), tensors))


@pytest.mark.compiled
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_block_keeps_the_operators(strict: bool):
    block, (x, m, angles) = make_block(), inputs(2, 2)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        block, (x, m, angles), dynamic_shapes=({0: batch}, {0: batch}, (None, None, None)), strict=strict
    )
    assert operators_in(program.graph) >= OURS
    x, m, _ = inputs(5, 2)
    torch.testing.assert_close(program.module()(x, m, angles), block(x, m, angles))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_any_number_of_keys(strict: bool):
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return ops.attention(q, k, k)

    q, k, module = draw(2, 5, 3, 8), draw(2, 20, 3, 8), Attention()
    keys = ({}, {1: torch.export.Dim("keys")})
    program = torch.export.export(module, (q, k), dynamic_shapes=keys, strict=strict).module()
    for some in (k, k[:, :7]):
        torch.testing.assert_close(program(q, some), module(q, some))


@pytest.mark.parametrize("name", public())
def test_fake_tensors_have_the_shapes_of_real_ones(name: str):
    assert_traced_as_it_is(name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [n for n in with_axes_of_one_element() if not n.startswith("attention (")])
def test_fake_tensors_have_the_strides_of_real_ones(name: str, layout: str):
    """But for attention without log-sum-exp, which is torch's own operator."""
    operator, tensors = with_axes_of_one_element()[name]
    assert_fakes_are_like_it(operator, [LAYOUTS[layout](t.detach()).requires_grad_() for t in tensors])


class Executed(TorchDispatchMode):
    """Counts the operators that are run: what a checkpoint has kept is answered before it gets here."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function.name().partition("::")[2]] += 1
        return function(*args, **(kwargs or {}))


def execute(function: Callable[..., Tensor], given: Any, leaves: list[Tensor], **options: Any) -> Any:
    """Output, gradients and calls of a checkpointed function."""
    with Executed() as executed:
        out = checkpoint(function, *given, use_reentrant=False, **options)
        grads = torch.autograd.grad(out, leaves, draw(*out.shape))
    return [out, *grads], executed.calls


@pytest.mark.compiled
@pytest.mark.parametrize("keep", [False, True])
def test_a_checkpoint_policy_sees_the_operators(keep: bool):
    block, given = make_block(), inputs()
    kept = torch.ops.cosmos_distill.gated_residual_adaln.default

    def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        save = keep and operator is kept
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    def whole(*args: Any) -> Tensor:
        return block(*args).sin()  # needs the results of the block's last operator, so none is left out

    leaves = [*given[:2], *block.parameters()]
    out = whole(*given)
    want = [out, *torch.autograd.grad(out, leaves, draw(*out.shape))]
    contexts = partial(create_selective_checkpoint_contexts, policy)
    got, calls = execute(whole, given, leaves, context_fn=contexts)
    assert bit_equal(got, want)
    assert calls["adaln_modulate"] == 2
    assert calls["gated_residual_adaln"] == (1 if keep else 2)
    assert calls["gated_residual_adaln_backward"] == 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("lse", [False, True])
def test_keep_attention_never_runs_it_twice(keep: bool, lse: bool):
    linear, (q, k, v) = nn.Linear(8, 8), [draw(2, n, 3, 8).requires_grad_() for n in (6, 5, 5)]

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = ops.attention(linear(q), k, v, return_lse=lse, backend="sdpa")
        return result[0].sin() + result[1].sum() if lse else result.sin()

    leaves = [q, k, v, *linear.parameters()]
    out = block(q, k, v)
    want = [out, *torch.autograd.grad(out, leaves, draw(*out.shape))]
    got, calls = execute(block, (q, k, v), leaves, **({"context_fn": ops.keep_attention} if keep else {}))
    assert bit_equal(got, want)
    name = "attention" if lse else "_scaled_dot_product_flash_attention_for_cpu"
    assert calls[name] == (1 if keep else 2)
    assert calls[f"{name}_backward"] == 1
    assert calls["addmm"] == 2  # the projection is recomputed
