"""How the fused operators may be sharded, for DTensor. Imported when the first DTensor reaches an operator.

Every registered operator can be replicated, split over samples, and but for those of losses further over

===================  ==================================================================================
adaptive LayerNorm   frames and tokens; the gradients of modulation shared by tokens are partial sums
qk_norm_rope         heads, and tokens unless the rotary tables are factored (a shard is no grid); the
                     weights' gradients are partial sums
attention            heads, and queries, against which the gradients of keys and values are partial sums
===================  ==================================================================================

A placement is written for each kind of tensor, and each operator as the kinds of its results and arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from . import adaln, attn, dm_loss, qknorm  # noqa: F401  # registers the operators

Way = dict[str, Placement]  # kind of tensor -> its placement on one axis of the device mesh
Ways = Callable[..., list[Way]]


def _adaln(x: Any) -> list[Way]:
    tokens = x.ndim - 2
    groups: list[Way] = [{kind: Shard(axis) for kind in ("x", "rows", "drows")} for axis in range(tokens)]
    return [*groups, {"x": Shard(tokens), "rows": Replicate(), "drows": Partial()}]


def _norm_rope(q: Any, table: Any | None, grid: Sequence[int]) -> list[Way]:
    batch, length, _, dim = q.shape
    per_token = table is None or not grid
    per_sample = table is not None and table.ndim == (2 if grid else 3)
    ways = []
    for axis in range(3):
        way: Way = {"x": Shard(axis), "weight": Replicate(), "dweight": Partial(), "table": Replicate()}
        if axis == 0 and per_sample:
            way["table"] = Shard(0)
        elif axis == 1 and table is not None:
            way["table"] = Shard(table.ndim - 2)
        if axis != 1 or per_token:
            ways.append(way)
    # DTensor remembers decisions by shapes alone. Where those do not tell [S, Dh] from factored [B, L], only
    # heads are the same for both.
    if table is not None and tuple(table.shape) == (batch, dim) == (length, dim):
        return ways[-1:]
    return ways


def _attention(q: Any) -> list[Way]:
    samples, heads, queries = Shard(0), Shard(2), Shard(1)
    return [
        {"q": samples, "kv": samples, "dkv": samples, "lse": samples},
        {"q": heads, "kv": heads, "dkv": heads, "lse": Shard(1)},
        {"q": queries, "kv": Replicate(), "dkv": Partial(), "lse": Shard(2)},
    ]


def _rule(operator: str, results: str, arguments: str, ways: Ways) -> None:
    """``results`` and ``arguments`` name the kind of each tensor; ``-`` is an argument that is none."""
    out, into = results.split(), arguments.split()

    def sharding(*args: Any) -> list[tuple[list[Any], list[Any]]]:
        everywhere: Way = {kind: Replicate() for kind in (*out, *into)}
        return [
            (
                [way[kind] for kind in out],
                [
                    None if kind == "-" or arg is None else way[kind]
                    for kind, arg in zip(into, args, strict=True)
                ],
            )
            for way in (everywhere, *ways(*args))
        ]

    register_sharding(getattr(torch.ops.cosmos_distill, operator).default)(sharding)


_rule("adaln_modulate", "x x", "x rows rows - -", lambda x, *_: _adaln(x))
_rule("adaln_modulate_backward", "x drows drows", "x x x rows -", lambda grad, *_: _adaln(grad))
_rule("gated_residual_adaln", "x x x", "x x rows rows rows - -", lambda x, *_: _adaln(x))
_rule(
    "gated_residual_adaln_backward",
    "x x drows drows drows",
    "x x x x x rows rows -",
    lambda grad_x_new, grad, *_: _adaln(grad),
)
_rule(
    "qk_norm_rope",
    "x x x x",
    "x x weight weight table table - - -",
    lambda q, k, q_weight, k_weight, cos, sin, grid, *_: _norm_rope(q, cos, grid),
)
_rule(
    "qk_norm_rope_backward",
    "x x dweight dweight",
    "x x x x weight weight x x table table - -",
    lambda q_grad, k_grad, q, k, q_weight, k_weight, q_rstd, k_rstd, cos, sin, grid, _: _norm_rope(
        q, cos, grid
    ),
)
_rule("attention", "q lse", "q kv kv - -", lambda q, *_: _attention(q))
_rule("attention_backward", "q dkv dkv", "q lse q kv kv q lse - -", lambda grad, *_: _attention(grad))
# The operators that losses are made of: every tensor begins with the axis of samples.
for _name, _results, _arguments in (
    ("renoise", "x", "x x x x -"),
    ("vsd", "x x", "x x x x x - x x -"),
    ("vsd_gradient", "x", "x x -"),
    ("with_gradient", "x", "x x x x -"),
    ("squared_error", "x", "x x x x x -"),
    ("squared_error_gradient", "x", "x x x x x x -"),
):
    _rule(_name, _results, _arguments, lambda *_: [{"x": Shard(0)}])
