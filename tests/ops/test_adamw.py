from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from cosmos_distill import ops

SHAPES = [(5, 7), (), (4099,), (0, 3), (130, 127)]  # several blocks of 4096, ends that fill no vector
STEP = ops.AdamWStep(step=1, lr=3e-2, ema_rate=0.05, betas=(0.8, 0.95), weight_decay=0.1)
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.compiled)]


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_adamw_followed_by_the_average(backend: str):
    params = draw(0)
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = torch.optim.AdamW(
        theirs, lr=STEP.lr, betas=STEP.betas, eps=STEP.eps, weight_decay=STEP.weight_decay, foreach=False
    )
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    emas, averages = ([p.clone() for p in params] for _ in range(2))
    copies = [torch.empty_like(p, dtype=torch.bfloat16) for p in params]
    for step in range(1, 6):
        grads = draw(step)
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        for param, average in zip(theirs, averages, strict=True):
            average.copy_(0.95 * average + 0.05 * param.detach())
        now = dataclasses.replace(STEP, step=step)
        ops.adamw_ema(params, grads, first, second, emas, now, copies=copies, backend=backend)
    for i, param in enumerate(theirs):
        torch.testing.assert_close(params[i], param.detach(), rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(emas[i], averages[i], rtol=2e-6, atol=2e-6)
        state = optimizer.state[param]
        torch.testing.assert_close(first[i], state["exp_avg"], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(second[i], state["exp_avg_sq"], rtol=2e-6, atol=2e-6)
        assert torch.equal(copies[i], params[i].bfloat16())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_with_its_element_and_shows_in_all_of_its_state(backend: str):
    groups = [draw(i) for i in range(5)]
    groups[3] = [t.abs() for t in groups[3]]
    groups[1][0][2, 3] = float("nan")
    ops.adamw_ema(*groups, STEP, backend=backend)
    for group in (groups[0], *groups[2:]):
        assert group[0].isnan().nonzero().tolist() == [[2, 3]]
        assert all(t.isfinite().all() for t in group[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_notices_what_has_changed(backend: str):
    """A graph that needs a parameter as it was before the step gets no gradient instead of a wrong one."""
    groups = [draw(i) for i in range(5)]
    copies = [t.bfloat16() for t in groups[0]]
    weight = groups[0][0].requires_grad_()
    loss = (weight * weight).sum()
    before = [[t._version for t in group] for group in (*groups, copies)]
    ops.adamw_ema(*groups, STEP, copies=copies, backend=backend)
    after = [[t._version for t in group] for group in (*groups, copies)]
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old == new if i == 1 else all(a < b for a, b in zip(old, new, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("copied", [False, True])
def test_a_compiled_step_is_the_step(copied: bool, backend: str | None):
    def take(groups: list[list[Tensor]], copies: list[Tensor]) -> None:
        ops.adamw_ema(*groups, STEP, copies=copies if copied else None, backend=backend)

    given = [([draw(i) for i in range(5)], [t.bfloat16() for t in draw(0)]) for _ in range(2)]
    for groups, _ in given:
        groups[3] = [t.abs() for t in groups[3]]
    torch._dynamo.reset()
    torch.compile(take, fullgraph=True, backend="aot_eager")(*given[0])
    take(*given[1])
    torch.testing.assert_close(*given)


@pytest.mark.compiled
def test_one_graph_serves_all_steps():
    counter = CompileCounterWithBackend("aot_eager")
    groups = [[t.abs() for t in draw(i)] for i in range(5)]
    torch._dynamo.reset()
    compiled = torch.compile(ops.adamw_ema, fullgraph=True, backend=counter)
    for step in range(1, 9):
        compiled(*groups, dataclasses.replace(STEP, step=step))
    assert counter.frame_count == 2  # 1 is a constant


def test_errors_name_the_argument():
    groups = dict(
        zip(("params", "grads", "exp_avgs", "exp_avg_sqs", "emas"), map(draw, range(5)), strict=True)
    )
    for change, message in (
        ({"grads": groups["grads"][:2]}, "grads must be 5 tensors"),
        ({"emas": [*groups["emas"][:4], torch.zeros(130, 128)]}, r"emas\[4\] must be \[130, 127\]"),
        ({"exp_avgs": [t.double() for t in groups["exp_avgs"]]}, r"exp_avgs\[0\] must be .* torch.float32"),
        ({"exp_avg_sqs": [torch.zeros(7, 5).t(), *groups["exp_avg_sqs"][1:]]}, "must be contiguous"),
        ({"copies": groups["emas"]}, r"copies\[0\] must be .* torch.bfloat16"),
        (
            {"params": [*groups["params"][:4], torch.zeros(130, 127, device="meta")]},
            r"params\[4\] is on meta",
        ),
        ({"emas": [t.to("meta") for t in groups["emas"]]}, r"emas\[0\] is on meta"),
        ({"params": [t.numpy() for t in groups["params"]]}, r"params\[0\] must be a tensor, not ndarray"),
        ({"grads": [*groups["grads"][:4], None]}, r"grads\[4\] must be a tensor, not NoneType"),
        ({"step": dataclasses.replace(STEP, step=0)}, "counted from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.adamw_ema(**{**groups, "step": STEP, **change})


@pytest.mark.parametrize("argument", ["params", "grads", "exp_avgs", "exp_avg_sqs", "emas", "copies"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_are_refused_until_unwrapped(backend: str, argument: str):
    """What stands for a tensor elsewhere, as a DTensor does, has no memory of its own to write into."""
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas", "copies")
    groups: dict[str, list[Tensor]] = {name: [torch.ones(3)] for name in names}
    groups["params"], groups["copies"] = [torch.nn.Parameter(torch.ones(3))], [torch.ones(3).bfloat16()]
    ops.adamw_ema(**groups, step=STEP, backend=backend)
    groups[argument] = [TwoTensor(t.detach(), t.detach()) for t in groups[argument]]
    with pytest.raises(ValueError, match=rf"{argument}\[0\] must be .*, not TwoTensor: .*\.to_local\(\)"):
        ops.adamw_ema(**groups, step=STEP, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tracers_are_no_shards(backend: str):
    with FakeTensorMode():
        ops.adamw_ema(*([torch.ones(3)] for _ in range(5)), STEP, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_on_several_devices_are_refused(backend: str):
    """Every list alike: each tensor fits its parameter, and no kernel could read all of them."""
    groups = [[torch.zeros(3), torch.zeros(3, device="meta")] for _ in range(5)]
    with pytest.raises(ValueError, match=r"params\[1\] is on meta but params\[0\] is on cpu"):
        ops.adamw_ema(*groups, STEP, backend=backend)
