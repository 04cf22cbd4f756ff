"""Tensor-parallel linears that return their output alone."""

from __future__ import annotations

import torch
from torch import nn

from cosmos_distill.parallel import groups

# groups has already imported megatron.core with its fallback warnings silenced.
from megatron.core.tensor_parallel import layers  # isort: skip


class ColumnLinear(layers.ColumnParallelLinear):
    """y = x A^T with A split over output features; every rank keeps its own slice of y.

    x [..., in_features] (whole on every rank) -> y [..., out_features / tensor parallel size].
    """

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(
            in_features,
            out_features,
            config=groups.megatron_config(dtype),
            init_method=nn.init.zeros_,  # never called: see groups.megatron_config
            bias=False,
            tp_group=groups.tensor_group(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]

    # Megatron's empty extra state would put a None under every layer into the checkpoint.
    get_extra_state = nn.Module.get_extra_state


class RowLinear(layers.RowParallelLinear):
    """y = x A^T with A split over input features; partial products are summed over the group.

    x [..., in_features / tensor parallel size] -> y [..., out_features], whole on every rank.
    """

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(
            in_features,
            out_features,
            config=groups.megatron_config(dtype),
            init_method=nn.init.zeros_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tensor_group(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]

    get_extra_state = nn.Module.get_extra_state
