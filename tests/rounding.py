"""Another machine's rounding: with COSMOS_DISTILL_ROUNDING=shapes matrix products round by their shapes.

Libraries of matrix products choose a kernel, hence an order of additions, by shapes, threads and processor.
Two calls of equal shapes are equal on one machine, but a row alone and the same row in a batch need not be,
and on which machine they differ is luck. Here they always differ: every result of a product is scaled by
1 + e, where e is one of 64 tiny factors picked by a hash of the operands' shapes. Products that no order of
additions changes, those of small whole numbers, stay as they are. A test that then fails asks for equal bits
where nothing guarantees them; or it shows that the code does not keep a promise of equal bits.

    COSMOS_DISTILL_ROUNDING=shapes python -m pytest tests
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VARIABLE = "COSMOS_DISTILL_ROUNDING"
_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot, _aten.linear,
    _aten.convolution, _aten.convolution_backward, _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
}  # fmt: skip


class ShapeRounding(TorchDispatchMode):
    """Scales every result of a product by a factor that depends on the operands' shapes alone."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "overloadpacket", None) not in PRODUCTS:
            return result
        if _exact(args, result):
            return result
        shapes = str([tuple(a.shape) for a in args if isinstance(a, torch.Tensor)])
        pick = (
            hashlib.sha256(shapes.encode()).digest()[0] % 64 - 31.5
        )  # never 0: every shape differs from exact
        if isinstance(result, tuple | list):
            return type(result)(_scaled(r, pick) for r in result)
        return _scaled(result, pick)


def _exact(args: Sequence[Any], result: Any) -> bool:
    """Whether every partial sum is a whole number that its dtype holds: all orders give the same bits."""
    factors = [a for a in args if isinstance(a, torch.Tensor)]
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return False
    if not all(bool((f == f.round()).all()) for f in factors):
        return False
    inner = factors[-1].abs().double().sum()
    return bool(inner * factors[0].abs().max() < 1 / torch.finfo(result.dtype).eps)


def _scaled(value: Any, pick: float) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype.itemsize < 4:
        return value  # a last bit of bf16 is more than another order of additions would change
    return value.mul_(1 + pick / 16 * torch.finfo(value.dtype).eps)


def asked_for() -> bool:
    """Whether this run of the tests is to round by shapes."""
    return os.environ.get(VARIABLE, "") == "shapes"


@contextmanager
def by_shapes(enabled: Callable[[], bool] = asked_for) -> Iterator[None]:
    """Round by shapes in this block, if ``enabled`` says so."""
    if not enabled():
        yield
        return
    with ShapeRounding():
        yield
