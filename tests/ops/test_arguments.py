"""Wrong arguments of every operator are a ValueError that names the argument, whatever the backend."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from cosmos_distill.ops import Preconditioned


def z(*shape: int) -> Tensor:
    return torch.zeros(shape)


AXES = {"angles of t": z(1, 3), "angles of h": z(2, 1), "angles of w": z(3, 2)}


def with_angles(q: Tensor, **axes: Tensor) -> Any:
    return ops.qk_norm_rope(q, q, z(12), z(12), angles=tuple(axes.values()))


def preconditioned(x_t: Tensor, c_skip: Tensor, c_out: Tensor) -> Any:
    return ops.vsd_loss(*[z(2, 3, 2, 4, 4)] * 3, preconditioned=Preconditioned(x_t, c_skip, c_out))


def merged(**parts: Tensor) -> Any:
    outs = [part for name, part in parts.items() if name.startswith("outs")]
    return ops.merge_attention(outs, [part for name, part in parts.items() if name.startswith("lses")])


LSES = {"lses[0]": z(2, 3, 6), "lses[1]": z(2, 3, 6)}
LATENT = z(2, 3, 2, 4, 4)
GOOD: dict[str, tuple[Callable[..., Any], dict[str, Tensor]]] = {
    "adaln_modulate": (ops.adaln_modulate, {"x": z(2, 5, 8), "shift": z(2, 8), "scale": z(2, 8)}),
    "gated_residual": (ops.gated_residual, {"x": z(2, 3, 5, 8), "y": z(2, 3, 5, 8), "gate": z(2, 3, 8)}),
    "gated_residual_adaln": (
        ops.gated_residual_adaln,
        {
            "x": z(2, 3, 5, 8),
            "y": z(2, 3, 5, 8),
            "gate": z(2, 3, 8),
            "shift": z(2, 3, 8),
            "scale": z(2, 3, 8),
        },
    ),
    "qk_norm_rope": (
        ops.qk_norm_rope,
        {
            "q": z(2, 6, 3, 12),
            "k": z(2, 6, 3, 12),
            "q_weight": z(12),
            "k_weight": z(12),
            "cos": z(6, 12),
            "sin": z(6, 12),
        },
    ),
    "qk_norm_rope angles": (with_angles, {"q": z(2, 6, 3, 12), **AXES}),
    "attention": (ops.attention, {"q": z(2, 6, 3, 8), "k": z(2, 5, 3, 8), "v": z(2, 5, 3, 8)}),
    "attention_backward": (
        ops.attention_backward,
        {
            "q": z(2, 6, 3, 8),
            "k": z(2, 5, 3, 8),
            "v": z(2, 5, 3, 8),
            "grad": z(2, 6, 3, 8),
            "out": z(2, 6, 3, 8),
            "lse": z(2, 3, 6),
        },
    ),
    "merge_attention": (merged, {"outs[0]": z(2, 6, 3, 8), "outs[1]": z(2, 6, 3, 8), **LSES}),
    "renoise": (ops.renoise, {"x0": LATENT, "eps": LATENT, "sigma": z(2), "alpha": z(2)}),
    "combine_guidance": (
        lambda **t: ops.combine_guidance(**t, scale=2.0),
        {"cond": LATENT, "uncond": LATENT},
    ),
    "vsd_loss": (
        ops.vsd_loss,
        dict.fromkeys(("x0_student", "x0_teacher", "x0_fake", "uncond"), LATENT) | {"frame_mask": z(2, 2)},
    ),
    "preconditioned": (preconditioned, {"x_t": LATENT, "c_skip": z(2), "c_out": z(2)}),
    "fake_score_loss": (
        ops.fake_score_loss,
        {"x0_fake": LATENT, "x0_student": LATENT, "sigma": z(2), "frame_mask": z(2, 2)},
    ),
    "generator_loss": (ops.generator_loss, {"fake": z(2, 3)}),
    "discriminator_loss": (ops.discriminator_loss, {"fake": z(2, 3), "real": z(2, 3)}),
}

WRONG: dict[str, Callable[[Tensor], Any]] = {
    "complex": lambda t: t.to(torch.complex64),
    "integer": lambda t: t.long(),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "elsewhere": lambda t: t.to("meta"),
    "an axis too many": lambda t: t[None, None],
    "an axis too few": lambda t: t[0] if t.dim() > 1 else t.sum(),
    "longer": lambda t: torch.cat([t, t], dim=-1),
    "a scalar": lambda t: torch.tensor(1.0),
    "no tensor": lambda t: t.numpy(),
    "fp8": lambda t: t.to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
}
# What others are compared with: where it changes, they may be the ones that no longer fit.
COMPARED_WITH = {"x", "q", "outs[0]", "x0", "cond", "x0_student", "x0_fake", "fake"}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", GOOD)
def test_a_wrong_argument_is_named(name: str, wrong: str):
    operator, good = GOOD[name]
    operator(**good)
    first = next(iter(good))
    for argument, tensor in good.items():
        if argument == "frame_mask" and wrong in ("integer", "fp8", "quantised"):
            continue
        if name == "adaln_modulate" and argument != "x" and wrong == "an axis too few":
            continue  # one row for all samples
        if argument == first and argument in COMPARED_WITH:
            if name == "generator_loss" and wrong in ("an axis too few", "longer", "elsewhere"):
                continue
            named = "|".join(map(re.escape, good))  # whichever no longer fits
        else:
            named = re.escape(argument)
        if name == "qk_norm_rope angles" and wrong == "longer":
            named = "angles span|q_weight"
        with pytest.raises(ValueError, match=named):
            operator(**{**good, argument: WRONG[wrong](tensor)})


@pytest.mark.parametrize("name", ["attention", "attention_backward", "merge_attention", "combine_guidance"])
def test_mixed_dtypes_are_named(name: str):
    operator, good = GOOD[name]
    for argument, tensor in good.items():
        if argument not in ("q", "outs[0]", "lses[0]", "cond"):  # what others are compared with
            with pytest.raises(ValueError, match=re.escape(argument)):
                operator(**{**good, argument: tensor.double()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_log_sum_exp_is_at_least_fp32(dtype: torch.dtype):
    operator, good = GOOD["attention_backward"]
    given = {name: tensor.to(dtype) for name, tensor in good.items() if name != "lse"}
    wide = torch.promote_types(dtype, torch.float32)
    assert operator(**given, lse=good["lse"].to(wide), backend="reference")[0].dtype == dtype
    with pytest.raises(ValueError, match=f"lse must be a tensor of {wide}"):
        operator(**given, lse=good["lse"].to(torch.float16))


def test_settings_of_another_kind_are_named():
    latents, q = [z(2, 3, 2, 4, 4)] * 3, z(2, 6, 3, 12)
    for message, call in (
        ("form must be a VSDForm, not str", lambda: ops.vsd_loss(*latents, "dmd2")),  # type: ignore[arg-type]
        (
            "preconditioned must be a Preconditioned, not tuple",
            lambda: ops.vsd_loss(*latents, preconditioned=(latents[0], z(2), z(2))),  # type: ignore[arg-type]
        ),
        (
            "preconditioned must be a Preconditioned, not tuple",
            lambda: ops.fake_score_loss(*latents[:2], z(2), preconditioned=(latents[0], z(2), z(2))),  # type: ignore[arg-type]
        ),
        ("guidance is 5 but uncond is missing", lambda: ops.vsd_loss(*latents, guidance=5)),
        (
            "angles must be the tables of t, h and w, not int",
            lambda: ops.qk_norm_rope(q, q, z(12), z(12), angles=5),  # type: ignore[arg-type]
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_wrong_backend_is_named(backend: str | None):
    x, m = z(2, 5, 8), z(2, 8)
    ops.adaln_modulate(x, m, m, backend=backend)
    with pytest.raises(ValueError, match="backend must be the name"):
        ops.adaln_modulate(x, m, m, backend=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adaln_modulate", "gated_residual_adaln", "qk_norm_rope"])
def test_small_tensors_may_be_wider_or_narrower_than_large_ones(name: str, dtype: torch.dtype):
    operator, good = GOOD[name]
    large = {"x", "y", "q", "k"}
    result = operator(**{k: t + 0.5 if k in large else (t + 0.5).to(dtype) for k, t in good.items()})
    exact = operator(**{k: t + 0.5 for k, t in good.items()})
    torch.testing.assert_close(result, exact)  # 0.5 is exact in every dtype


def test_head_sizes():
    q = z(1, 2, 1, 7)
    ops.qk_norm_rope(q, q, z(7), z(7))  # any size may be normalised
    with pytest.raises(ValueError, match="q has head size 7, but rotary embedding pairs channels"):
        ops.qk_norm_rope(q, q, z(7), z(7), z(2, 7), z(2, 7))
    with pytest.raises(ValueError, match=r"q must be .* with D > 0"):
        ops.attention(q[..., :0], q[..., :0], q[..., :0])
    with pytest.raises(ValueError, match="angles must be the tables of t, h and w, not 2"):
        ops.qk_norm_rope(q[..., :6], q[..., :6], z(6), z(6), angles=(z(2, 2), z(1, 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["adaln_modulate", "gated_residual_adaln", "qk_norm_rope", "qk_norm_rope angles"]
)
@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("eps", [-1e-6, float("nan")])
def test_an_eps_below_zero_is_named(name: str, eps: float, backend: str | None):
    """It would go under the root."""
    operator, good = GOOD[name]
    given = {"eps": eps, "backend": backend}
    if name == "qk_norm_rope angles":
        name, given, q = "qk_norm_rope", {**given, "angles": tuple(AXES.values())}, z(2, 6, 3, 12)
        operator, good = ops.qk_norm_rope, {"q": q, "k": q, "q_weight": z(12), "k_weight": z(12)}
    operator(**good, **{**given, "eps": 0})
    with pytest.raises(ValueError, match=f"eps must be at least 0, not {eps}"):
        operator(**good, **given)


def test_an_eps_of_the_optimiser_below_zero_is_named():
    with pytest.raises(ValueError, match="eps must be at least 0, not -1"):
        ops.adamw_ema([], [], [], [], [], ops.AdamWStep(1, 1e-3, 0.1, eps=-1.0))


def test_fp8_is_named_with_what_to_do():
    x, m = z(2, 5, 8).to(torch.float8_e5m2), z(2, 8)
    with pytest.raises(
        ValueError, match=r"x must be fp64, fp32, bf16 or fp16, not torch.float8_e5m2: convert"
    ):
        ops.adaln_modulate(x, m, m)


def stepped(**numbers: Any) -> None:
    ops.adamw_ema([], [], [], [], [], ops.AdamWStep(**{"step": 1, "lr": 1e-3, "ema_rate": 0.1} | numbers))


def formed(**fields: Any) -> Any:
    return ops.vsd_loss(*[LATENT] * 3, form=ops.VSDForm(**fields))


NUMBERS: list[Any] = ["a", None, math.inf, -math.inf, math.nan, True, [1.0], 1j, torch.ones(2)]
FLAGS: list[Any] = ["yes", None, 1, 0.0, [], torch.tensor(True)]
WORDS: list[Any] = ["other", "", None, 3, ["mean"]]
KINDS: dict[str, list[Any]] = {
    "float": NUMBERS,
    "int": [*NUMBERS, 0, 1.5],
    "float | None": [bad for bad in NUMBERS if bad is not None],
    "bool": FLAGS,
    "tuple[float, float]": ["ab", 0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", 0.9), (0.9, math.nan), None],
    "SumOverShards | None": ["a", 3, LATENT],
    "AdamWStep": [None, 1, {"step": 1}],
    "VSDForm": [None, "dmd2"],
    "Preconditioned | None": ["a", (LATENT, z(2), z(2))],
    "Angles | None": [5, "thw"],
    "Window": ["a", 1.5, True, -1, (1,), (1, 2, 3), (0.5, 1)],
    "Lengths": [5, "ab", LATENT, [0, 6]],
    "torch.dtype | None": ["float32", torch.int8, 3],
}
"""Values that no argument of a type takes, by how it is annotated; a literal takes :data:`WORDS` of none."""
CALLED: dict[str, Callable[..., Any]] = {"AdamWStep": stepped, "VSDForm": formed, "adamw_ema": ops.adamw_ema}
SEVERAL = {
    "adamw_ema": {key: [] for key in ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas")}
    | {"step": ops.AdamWStep(1, 1e-3, 0.1)},
    "vsd_direction": {**dict.fromkeys(("x0_student", "x0_teacher", "x0_fake"), LATENT)},
    "combine_guidance": {"cond": LATENT, "uncond": LATENT, "scale": 2.0},
    "AdamWStep": {},
    "VSDForm": {},
}
OF_TENSORS = ("Tensor", "Sequence[Tensor]")


def settings() -> Iterator[Any]:
    """Every argument of every operator that is no tensor, with every value of another kind."""
    for name in ops.__all__:
        operator = getattr(ops, name)
        for argument, parameter in inspect.signature(operator).parameters.items():
            kind = str(parameter.annotation)
            if argument == "backend" or any(t in kind for t in OF_TENSORS) or name == "Preconditioned":
                continue
            literal = "Literal" in kind or kind == "CriticWeighting"
            for bad in WORDS if literal else KINDS[kind]:
                yield pytest.param(name, argument, bad, id=f"{name} {argument}={bad!r:.20}")


@pytest.mark.parametrize(("name", "argument", "bad"), settings())
def test_a_setting_of_another_kind_is_named(name: str, argument: str, bad: Any):
    good = SEVERAL[name] if name in SEVERAL else GOOD[name][1]
    operator = CALLED.get(name) or getattr(ops, name)
    operator(**good)
    if argument == "angles":
        good = {key: value for key, value in good.items() if key not in ("cos", "sin")}
    with pytest.raises(ValueError, match=rf"\b{argument}\b.* must be "):
        operator(**good | {argument: bad})
