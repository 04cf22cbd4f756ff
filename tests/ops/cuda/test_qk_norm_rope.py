"""csrc/qk_norm_rope.cu, emulated, through the public operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.calls import assert_alone_as_together
from tests.ops.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("emulated_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def heads(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axes", "interleaved"), [(0, False), (2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 9, 5, 64),  # several heads a warp
        (1, 7, 3, 22),  # no wide loads
        (1, 3, 2, 600),  # more channels than a warp takes at once
    ],
)
def test_as_good_as_torch(shape: tuple[int, ...], axes: int, interleaved: bool, dtype: torch.dtype):
    batch, length, _, dim = shape
    tables: tuple[Tensor | None, Tensor | None] = (None, None)
    if axes:
        angle = heads((batch, length, dim)[3 - axes :], 9)
        tables = angle.cos(), angle.sin()

    def operator(q: Tensor, k: Tensor, a: Tensor, b: Tensor, backend: str):
        return ops.qk_norm_rope(q, k, a, b, *tables, interleaved=interleaved, backend=backend)

    inputs = (heads(shape), heads(shape, 1), heads((dim,), 2), heads((dim,), 3))
    assert_as_good_as_torch([(operator, inputs, (heads(shape, 4), heads(shape, 5)))], "cuda", dtype)


@pytest.mark.parametrize(("per_sample", "interleaved"), [(False, False), (True, False), (True, True)])
def test_factored_angles(per_sample: bool, interleaved: bool):
    sizes, counts = (2, 3, 4), (3, 2, 3)
    angles = [heads((n, c), i) for i, (n, c) in enumerate(zip(sizes, counts, strict=True))]
    if per_sample:
        angles[0] = heads((2, sizes[0], counts[0]), 7)
    q, k = heads((2, 24, 3, 16), 4), heads((2, 24, 2, 16), 5)
    a, b = heads((16,), 6), heads((16,), 8)

    def operator(q: Tensor, k: Tensor, a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return ops.qk_norm_rope(q, k, a, b, angles=tuple(angles), interleaved=interleaved, backend=backend)

    grads = [heads(x.shape, 9) for x in (q, k)]
    assert_as_good_as_torch([(operator, (q, k, a, b), grads)], "cuda")


def test_slices_and_sides_of_different_size():
    wide = heads((2, 5, 3 * 64), 1).requires_grad_()
    q, k = (part.unflatten(-1, (4, 16)) for part in wide.chunk(3, -1)[:2])
    longer = heads((2, 11, 4, 16), 2)
    weight = torch.ones(16)
    for other in (k, longer, longer[:, :0], k[:, :, :1]):
        got, want = (ops.qk_norm_rope(q, other, weight, weight, backend=b) for b in ("cuda", "reference"))
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y)
        grads = [torch.autograd.grad(out[0].pow(3).sum() + out[1].sum(), wide)[0] for out in (got, want)]
        torch.testing.assert_close(*grads)


def test_odd_heads_are_normalised_only_and_too_wide_ones_refused():
    q, weight = heads((1, 3, 2, 5)), heads((5,), 1)
    got, want = (ops.qk_norm_rope(q, q, weight, weight, backend=b)[0] for b in ("cuda", "reference"))
    torch.testing.assert_close(got, want)
    wide = torch.ones(4096)
    with pytest.raises(ValueError, match="head size 4096"):
        ops.qk_norm_rope(wide.expand(1, 1, 1, -1), wide.expand(1, 1, 1, -1), wide, wide, backend="cuda")


def test_what_is_not_asked_for_is_left_out():
    q, k, weight = heads((1, 9, 2, 16), 9), heads((1, 3, 1, 16), 3), heads((16,))
    assert_alone_as_together(ops.qk_norm_rope, [q, k, weight, weight + 1], "cuda")
