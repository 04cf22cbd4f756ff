"""csrc/qk_norm_rope.cu, emulated, through the public operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_distill import ops
from tests.ops.tolerance import assert_as_good_as_torch

pytestmark = pytest.mark.usefixtures("emulated_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(batch: int, heads: int, dim: int) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randn(batch, 24, heads, dim, generator=draw) for _ in range(4)]
    return [*tokens[:2], *(torch.randn(dim, generator=draw) for _ in range(2))], tokens[2:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [128, 20, 6])
@pytest.mark.parametrize("tables", ["none", "full", "per sample", "axes", "axes per sample"])
def test_as_good_as_torch(tables: str, dim: int, dtype: torch.dtype):
    batch, half = 2, dim // 2
    tensors, grads = inputs(batch, 3 if dim < 128 else 9, dim)  # more heads than warps, and fewer
    lead = (batch,) if "per sample" in tables else ()
    a, b = half - 2 * (half // 3), half // 3
    axes = (torch.rand(*lead, 2, a) * 6, torch.rand(3, b) * 6, torch.rand(4, b) * 6)
    full = torch.rand(*lead, 24, dim) * 6

    def operator(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, backend: str):
        where: dict[str, object] = {}
        if "axes" in tables:
            where = {"angles": axes}
        elif tables != "none":
            where = {"cos": full.cos(), "sin": full.sin()}
        return ops.qk_norm_rope(q, k, q_weight, k_weight, backend=backend, **where)

    assert_as_good_as_torch(operator, tensors, grads, "cuda", 8, dtype)


def test_slices_of_a_fused_projection_and_two_lengths():
    fused = torch.randn(2, 7, 3 * 4 * 8)
    q, k, _ = (part.unflatten(-1, (4, 8)) for part in fused.chunk(3, dim=-1))
    weight = torch.randn(8)
    for other in (k, torch.randn(2, 3, 4, 8)):
        got = ops.qk_norm_rope(q, other, weight, weight, backend="cuda")
        torch.testing.assert_close(got, ops.qk_norm_rope(q, other, weight, weight, backend="reference"))


def test_an_odd_head_size_is_refused():
    q, weight = torch.randn(1, 2, 1, 7), torch.randn(7)
    with pytest.raises(ValueError, match="even head size, not 7"):
        ops.qk_norm_rope(q, q, weight, weight, backend="cuda")
