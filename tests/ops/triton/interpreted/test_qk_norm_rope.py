from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.calls import assert_alone_as_together
from tests.ops.tolerance import Case, assert_as_good_as_torch, draws

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rotation(kind: str, batch: int, grid: tuple[int, int, int], dim: int) -> dict[str, Any]:
    """Angles, or tables of every token, shared by the samples or each sample's own."""
    length, half = grid[0] * grid[1] * grid[2], dim // 2
    own = (batch,) if kind.endswith("per sample") else ()
    if kind.startswith("tables"):
        return {"cos": draw(*own, length, dim), "sin": draw(*own, length, dim, seed=1)}
    counts = half - 2 * (half // 3), half // 3, half // 3
    angles = [draw(size, count) * 3 for size, count in zip(grid, counts, strict=True)]
    if own:
        angles[0] = draw(*own, grid[0], counts[0]) * 3
    return {"angles": tuple(angles)}


@pytest.mark.parametrize("dtype", DTYPES)
# Heads fill a tile, take two, or leave a part of one empty; head size 128 is the networks'.
@pytest.mark.parametrize(
    ("heads", "dim", "kind", "interleaved"),
    [
        (4, 128, "angles", False),
        (24, 12, "angles per sample", False),
        (3, 10, "tables", False),
        (5, 6, "tables per sample", False),
        (5, 12, "angles", True),
        (3, 10, "tables per sample", True),
    ],
)
def test_rotated(heads: int, dim: int, kind: str, interleaved: bool, dtype: torch.dtype):
    batch, grid = 2, (1, 3, 3) if dim == 128 else (2, 1, 5)
    length = grid[0] * grid[1] * grid[2]  # backward takes 16 tokens at a time, here of both samples
    q, k = (draw(batch, length, heads, dim, seed=i) for i in range(2))
    tables = rotation(kind, batch, grid, dim)

    def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str) -> Any:
        return ops.qk_norm_rope(q, k, q_weight, k_weight, interleaved=interleaved, backend=backend, **tables)

    grads = [draw(*q.shape, seed=i) for i in (2, 3)]
    inputs = (q, k, draw(dim), draw(dim, seed=1))
    assert_as_good_as_torch([(operator, inputs, grads)], "triton", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "lengths"), [(64, (5, 40)), (7, (21, 3)), (1, (2, 2)), (6, (0, 3))])
def test_two_lengths_and_numbers_of_heads_without_rotation(
    dim: int, lengths: tuple[int, int], dtype: torch.dtype
):
    def case(seed: int) -> Case:
        q, k = draw(2, lengths[0], 3, dim, seed=8 * seed), draw(2, lengths[1], 2, dim, seed=8 * seed + 1)
        q, k = (x + x.sign() for x in (q, k))  # their gradient is divided by the mean square
        grads = [draw(*x.shape, seed=8 * seed + 2 + i) for i, x in enumerate((q, k))]
        return ops.qk_norm_rope, (q, k, *(draw(dim, seed=8 * seed + 4 + i) for i in range(2))), grads

    assert_as_good_as_torch(draws(case) if dim == 1 else [case(0)], "triton", dtype)


def test_slices_of_a_fused_projection():
    q, k, _ = (part.unflatten(-1, (4, 8)) for part in draw(2, 7, 3 * 4 * 8).chunk(3, dim=-1))
    a, b, cos, sin = draw(8), draw(8, seed=1), draw(7, 8), draw(7, 8, seed=1)
    got = ops.qk_norm_rope(q, k, a, b, cos, sin, backend="triton")
    torch.testing.assert_close(got, ops.qk_norm_rope(q, k, a, b, cos, sin, backend="reference"))


def test_what_is_not_asked_for_is_left_out():
    q, k, weight = draw(1, 9, 2, 16), draw(1, 3, 1, 16), draw(16)
    assert_alone_as_together(ops.qk_norm_rope, [q, k, weight, weight + 1], "triton")
