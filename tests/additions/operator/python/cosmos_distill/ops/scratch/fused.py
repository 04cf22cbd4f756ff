"""The declaration: from it follow the schema, the shapes that tracers see, and DTensor's rules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..declaration import Kinds, narrow
from ..library import define_differentiable, kernel


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.factor = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return grad * ctx.factor, None, None


scale = define_differentiable(
    "scratch_scale(x x, float factor) -> x",
    Kinds({"x": narrow("B *rest")}, split="B"),
    kernel("scratch", "scratch_scale"),
    _save,
    _backward,
)
