"""The two ways to call every operator."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cosmos_distill import ops
from cosmos_distill.ops.library import NAMESPACE, kernels
from tests.ops.calls import (
    FOLDERS,
    LATENT,
    PER_SAMPLE,
    K,
    M,
    Q,
    X,
    bit_equal,
    draw,
    modulated,
    public,
    run,
    tuple_of,
)
from tests.ops.layouts import LAYOUTS, assert_laid_out_as_one_likes, with_axes_of_one_element


@pytest.mark.parametrize("name", public())
def test_the_shortcut_is_the_registered_operator(name: str, monkeypatch: pytest.MonkeyPatch):
    operator, tensors = public()[name]
    short = run(operator, tensors)
    with torch.no_grad():
        assert bit_equal(list(tuple_of(operator(*tensors))), short[: -len(tensors)])
    with torch.profiler.profile() as profile:  # somebody is watching
        assert bit_equal(run(operator, tensors), short)
    seen = {event.key for event in profile.key_averages()}
    with torch.inference_mode():
        assert bit_equal(list(tuple_of(operator(*tensors))), short[: -len(tensors)])
    if ops_has_kernels(name):
        assert any(key.startswith(f"{NAMESPACE}::") and "_backward" not in key for key in seen)
    constant = [t.detach() for t in tensors]
    assert not any(r.requires_grad for r in tuple_of(operator(*constant)))


def served(name: str) -> tuple[str, str]:
    """The folder of an operator, and the function that its default backend has where it has kernels."""
    return {
        "adaln": ("adaln", "adaln_modulate"),
        "gated": ("adaln", "gated_residual"),
        "qk": ("qknorm", "qk_norm_rope"),
        "attention": ("attn", "attention_backward" if name.endswith("lse") else "none but torch's own"),
        "renoise": ("dm_loss", "renoise"),
        "vsd": ("dm_loss", "vsd"),
        "fake": ("dm_loss", "squared_error"),
    }[name.replace(" ", "_").split("_")[0]]


def ops_has_kernels(name: str) -> bool:
    """Whether the default backend of an operator is one with kernels."""
    folder, function = served(name)
    try:
        return hasattr(kernels(folder, FOLDERS[folder]), function)
    except ImportError:
        return False


@pytest.mark.parametrize("name", public())
def test_only_some_inputs_learn(name: str):
    operator, tensors = public()[name]
    everything = run(operator, tensors)[-len(tensors) :]
    for i in range(len(tensors)):
        chosen = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        results = tuple_of(operator(*chosen))
        learning = [r for r in results if r.requires_grad]
        grads = [draw(*r.shape) for r in learning]
        (got,) = torch.autograd.grad(learning, chosen[i], grads)
        if len(learning) == len(results):
            assert torch.equal(got, everything[i])


@pytest.mark.compiled
@pytest.mark.parametrize("watched", [False, True], ids=["shortcut", "registered"])
@pytest.mark.parametrize(
    "name",
    [
        "adaln_modulate",
        "gated_residual_adaln",
        "qk_norm_rope",
        "attention lse",
        "vsd_loss",
        "fake_score_loss",
    ],
)
def test_a_second_derivative_is_refused(name: str, watched: bool):
    operator, tensors = public()[name]
    if not ops_has_kernels(name):
        pytest.skip("plain torch, which has one")
    with torch.profiler.profile() if watched else torch.enable_grad():
        loss = sum(r.square().sum() for r in tuple_of(operator(*tensors)))
        (grad,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative: pass backend='reference'"):
        grad.sum().backward()
    loss = sum(r.square().sum() for r in tuple_of(operator(*tensors, backend="reference")))
    (grad,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    grad.sum().backward()
    assert tensors[0].grad is not None


@pytest.mark.compiled
def test_forward_mode_is_refused_not_ignored():
    x, m = X.clone(), M.clone()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative: pass backend='reference'"):
            ops.adaln_modulate(dual, m, m, backend="cpu")
        out = ops.adaln_modulate(dual, m, m, backend="reference")
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None
        ops.adaln_modulate(x, m, m, backend="cpu")  # no tangent, no objection


@pytest.mark.parametrize("watched", [False, True], ids=["shortcut", "registered"])
@pytest.mark.parametrize("argument", ["grad", "q", "v"])
def test_forward_mode_through_a_gradient_is_refused_too(argument: str, watched: bool):
    given = {
        "grad": Q,
        "q": Q,
        "k": K.clone().requires_grad_(watched),
        "v": K,
        "out": Q,
        "lse": draw(2, 3, 6),
    }
    with torch.autograd.forward_ad.dual_level():
        ops.attention_backward(**given, backend="sdpa")  # no tangent, no objection
        given[argument] = torch.autograd.forward_ad.make_dual(
            given[argument], torch.ones_like(given[argument])
        )
        with pytest.raises(NotImplementedError, match="attention_backward has no forward-mode derivative"):
            ops.attention_backward(**given, backend="sdpa")


@pytest.mark.compiled
def test_forward_mode_through_a_backward_pass_is_refused_too():
    x, m = X.clone().requires_grad_(), M.clone()
    out = ops.adaln_modulate(x, m, m, backend="cpu")
    with torch.autograd.forward_ad.dual_level():
        slope = torch.autograd.forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(
            NotImplementedError, match="adaln_modulate_backward has no forward-mode derivative"
        ):
            torch.autograd.grad(out, x, slope)


@pytest.mark.compiled
def test_a_view_with_its_sign_flipped_is_read_with_its_sign():
    flipped = torch._neg_view(X)
    assert torch.equal(ops.adaln_modulate(flipped, M, M, backend="cpu"), ops.adaln_modulate(-X, M, M))


@pytest.mark.compiled
def test_transforms_of_torch_func_never_read_a_wrapper_as_memory():
    mapped = torch.func.vmap(lambda x: ops.adaln_modulate(x, M, M, backend="cpu"))(torch.stack([X, X + 1]))
    assert torch.equal(mapped[1], ops.adaln_modulate(X + 1, M, M, backend="cpu"))


def transformed(name: str, backend: str | None) -> dict[str, Callable[[], Any]]:
    """Derivatives by torch.func: alone, of samples one by one, and of a function mapped over samples."""
    operator, tensors = public()[name]
    x, *others = (t.detach() for t in tensors)
    many = torch.stack([x, x + 1])

    def loss(x: Tensor) -> Tensor:
        return torch.stack([r.square().sum() for r in tuple_of(operator(x, *others, backend=backend))]).sum()

    return {
        "grad": lambda: torch.func.grad(loss)(x),
        "jacrev": lambda: torch.func.jacrev(loss)(x),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(many)[0],
        "grad of vmap": lambda: torch.func.grad(lambda many: torch.func.vmap(loss)(many).sum())(many)[0],
    }


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", public())
def test_derivatives_of_torch_func(name: str):
    operator, tensors = public()[name]
    want = torch.autograd.grad(
        sum(r.square().sum() for r in tuple_of(operator(*tensors, backend="reference"))), tensors[0]
    )[0]
    for how, derivative in transformed(name, "reference").items():
        torch.testing.assert_close(derivative(), want, msg=lambda m, how=how: f"{how}: {m}")
    if not ops_has_kernels(name):
        return
    for how, derivative in transformed(name, None).items():
        torch.testing.assert_close(derivative(), want, msg=lambda m, how=how: f"{how}, picked: {m}")
    for derivative in transformed(name, FOLDERS[served(name)[0]]).values():
        with pytest.raises(NotImplementedError, match=r"no derivative under torch\.func: pass backend='ref"):
            derivative()


@pytest.mark.parametrize("name", public())
def test_forward_mode(name: str):
    """By dual numbers and by torch.func, whoever is picked: the reference's in fp64, which is that of finite
    differences (test_gradcheck.py) where a derivative is one of the value."""
    operator, tensors = public()[name]
    tangents = [draw(*t.shape, 3)[..., 0] for t in tensors]

    def of(dtype: torch.dtype, how: str, backend: str | None) -> list[Tensor]:
        given, along = ([t.detach().to(dtype) for t in group] for group in (tensors, tangents))
        call = partial(operator, backend=backend)
        if how == "torch.func":
            return list(tuple_of(torch.func.jvp(call, tuple(given), tuple(along))[1]))
        with torch.autograd.forward_ad.dual_level():
            duals = map(torch.autograd.forward_ad.make_dual, given, along)
            parts = [torch.autograd.forward_ad.unpack_dual(r) for r in tuple_of(call(*duals))]
            return [part.tangent for part in parts if part.tangent is not None]

    want = of(torch.float64, "dual", "reference")
    for how in ("dual", "torch.func"):
        got = of(torch.float32, how, None)
        assert len(got) == len(want) > 0
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_forward_mode_of_the_loss_goes_along_its_gradient():
    x, along = LATENT.double(), draw(*LATENT.shape, 3)[..., 0].double()

    def loss(x: Tensor) -> Tensor:
        return ops.vsd_loss(x, LATENT.double() + 1, LATENT.double() + 3).sum()

    got = torch.func.jvp(loss, (x,), (along,))[1]
    torch.testing.assert_close(got, (torch.func.grad(loss)(x) * along).sum())


@pytest.mark.compiled
def test_torch_func_may_use_what_it_does_not_differentiate():
    want = ops.adaln_modulate(X, M, M, backend="cpu")
    loss = torch.func.grad(lambda y: (y * ops.adaln_modulate(X, M, M, backend="cpu")).sum())
    torch.testing.assert_close(loss(torch.ones(())), want.sum())
    # What torch.func maps over samples, torch.autograd may differentiate.
    x, learned = X.clone().requires_grad_(), M.clone().requires_grad_()
    mapped = torch.func.vmap(lambda x: ops.adaln_modulate(x, learned, learned, backend="cpu"))
    got = torch.autograd.grad(mapped(torch.stack([x, x])).sum(), (x, learned))
    exact = 2 * ops.adaln_modulate(x, learned, learned, backend="cpu").sum()
    torch.testing.assert_close(got, torch.autograd.grad(exact, (x, learned)))


@pytest.mark.parametrize("name", public())
def test_autocast_changes_attention_only(name: str):
    operator, tensors = public()[name]
    plain = run(operator, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(operator, tensors)
    if name.startswith("attention"):
        assert cast[0].dtype == torch.bfloat16
        expected = run(operator, [t.to(torch.bfloat16) for t in tensors])
        assert torch.equal(cast[0], expected[0])
        assert [g.dtype for g in cast[-3:]] == [torch.float32] * 3
    else:
        assert bit_equal(cast, plain)


@pytest.mark.parametrize("backend", ["reference", None])
def test_autocast_lets_attention_take_what_projections_return(backend: str | None):
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.attention(Q, K, K.bfloat16(), backend=backend)
        assert out.dtype == torch.bfloat16
        assert ops.attention(*[t.double() for t in (Q, K, K)], backend=backend).dtype == torch.float64


@pytest.mark.parametrize("name", public())
def test_non_contiguous_inputs_and_gradients(name: str):
    operator, tensors = public()[name]

    def scattered(x: Tensor) -> Tensor:
        wide = torch.full((*x.shape, 2), float("nan"))
        wide[..., 0] = x.detach()
        return wide[..., 0].requires_grad_()

    want = run(operator, tensors)
    views = [scattered(t) for t in tensors]
    results = tuple_of(operator(*views))
    grads = [scattered(draw(*r.shape)).detach() for r in results]
    got = [*results, *torch.autograd.grad(results, views, grads)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", with_axes_of_one_element())
def test_strides_of_axes_of_one_element_say_nothing(name: str, layout: str):
    assert_laid_out_as_one_likes(name, layout)


@pytest.mark.compiled
def test_registered_operators_are_not_misled_by_them_either():
    x, m = draw(3, 1, 4, 8), draw(3, 1, 8)
    q, w = draw(3, 1, 2, 8), draw(8)
    direct = torch.ops.cosmos_distill
    for layout in LAYOUTS.values():
        for operator, tensors, rest in (
            (direct.adaln_modulate, (x, m, m + 1), (1e-6, False, None, "cpu")),
            (direct.gated_residual_adaln, (x, x + 1, m, m + 1, m + 2), (1e-6, False, None, "cpu")),
            (direct.qk_norm_rope, (q, q + 1, w, w + 1), (None, None, [], False, 1e-6, "cpu")),
        ):
            leaves, placed = ([f(t).requires_grad_() for t in tensors] for f in (torch.clone, layout))
            want, got = operator(*leaves, *rest), operator(*placed, *rest)
            torch.testing.assert_close(got, want)
            grads = [
                torch.autograd.grad([one.square().sum() for one in r if one.requires_grad], t)
                for r, t in ((got, placed), (want, leaves))
            ]
            torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 2, 0, 8)])
def test_nothing_in_nothing_out(shape: tuple[int, ...], backend: str | None):
    x, m = (t.requires_grad_() for t in modulated(*shape))
    for grads in (run(ops.adaln_modulate, [x, m, m], backend=backend)[1:],):
        assert [g.shape for g in grads] == [x.shape, m.shape, m.shape]
        assert all(float(g.abs().sum()) == 0 for g in grads)  # NaN would be left of memory never written
    run(ops.gated_residual_adaln, [x, x, m, m, m], backend=backend)
    q = torch.zeros((*shape, 4)[-4:] if len(shape) == 3 else (2, 0, 3, 4), requires_grad=True)
    w = torch.ones(4, requires_grad=True)
    dw = run(ops.qk_norm_rope, [q, q, w, w], backend=backend)[-1]
    assert torch.equal(dw, torch.zeros(4))


def test_attention_to_nothing_is_zero():
    for backend in ("reference", "sdpa", None):
        out = ops.attention(Q, K[:, :0], K[:, :0], backend=backend)
        assert torch.equal(out, torch.zeros_like(Q))


def test_losses_of_an_empty_batch_are_empty():
    none = LATENT[:0]
    for loss in (
        ops.vsd_loss(none, none, none),
        ops.fake_score_loss(none, none, PER_SAMPLE[:0]),
        ops.generator_loss(torch.zeros(0, 3)),
    ):
        assert loss.shape == (0,)


@pytest.mark.parametrize("name", public())
def test_meta_tensors(name: str):
    operator, tensors = public()[name]
    if name.startswith(("qk_norm_rope", "renoise", "vsd", "fake")):
        pytest.skip("holds tensors that have memory")
    want = run(operator, tensors)
    meta = [t.detach().to("meta").requires_grad_() for t in tensors]
    results = tuple_of(operator(*meta))
    got = [*results, *torch.autograd.grad([r.sum() for r in results], meta)]
    assert [(g.shape, g.dtype, g.device.type) for g in got] == [(w.shape, w.dtype, "meta") for w in want]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return self.linear(ops.adaln_modulate(x, m, m))


def test_modules_copy_and_pickle():
    head = Head()
    want = head(X, M)
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(twin(X, M), want)
