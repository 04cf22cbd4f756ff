"""Tensor-parallel linears that return their output alone, and the way of tokens into and out of them.

    x --enter--> ColumnLinear --> per head or channel --> RowLinear --> x

Between ``enter`` and RowLinear every tensor-parallel rank has all tokens of its context part and a share of
the features. Outside, it has all features, of the same tokens or, with sequence parallelism (Korthikanti et
al. 2022, arXiv 2205.05198), of its share of them.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import nn

from cosmos_distill.parallel import groups

# Before anything else of Megatron, which it silences.
from cosmos_distill.parallel import megatron  # noqa: F401  # isort: skip
from megatron.core.tensor_parallel import layers, mappings  # isort: skip


def enter(x: torch.Tensor) -> torch.Tensor:
    """[B, tokens outside, D] -> [B, tokens inside, D]: what column linears read.

    One exchange for all linears that read the same x: backward, the ranks' gradients of it are summed here.
    """
    group = groups.tensor_group()
    if group.size() == 1:
        return x
    if not groups.layout().sequence:
        whole: torch.Tensor = mappings.copy_to_tensor_model_parallel_region(x, group=group)
        return whole
    gathered = mappings.gather_from_sequence_parallel_region(x.transpose(0, 1), group=group)
    return gathered.transpose(0, 1)


class _Copyable(nn.Module):
    """A copy of a layer belongs to the same ranks; a process group itself cannot be copied."""

    tp_group: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self.tp_group)] = self.tp_group
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__dict__, memo))
        return made


class ColumnLinear(_Copyable, layers.ColumnParallelLinear):
    """y = x A^T with A split over output features; every rank keeps its own slice of y.

    x [..., in_features], of :func:`enter` or without a gradient -> y [..., out_features / tensor].
    """

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(
            in_features,
            out_features,
            config=groups.megatron_config(dtype),
            init_method=nn.init.zeros_,  # never called: see groups.megatron_config
            bias=False,
            disable_grad_reduce=True,  # done by enter
            tp_group=groups.tensor_group(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]

    # Megatron's empty extra state would put a None under every layer into the checkpoint.
    get_extra_state = nn.Module.get_extra_state


class RowLinear(_Copyable, layers.RowParallelLinear):
    """y = x A^T with A split over input features; partial products are summed over the group.

    x [B, tokens inside, in_features / tensor] -> y [B, tokens outside, out_features].
    """

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(
            in_features,
            out_features,
            config=groups.megatron_config(dtype, sequence=groups.layout().sequence),
            init_method=nn.init.zeros_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tensor_group(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.sequence_parallel:
            return super().forward(x)[0]
        return super().forward(x.transpose(0, 1))[0].transpose(0, 1)  # Megatron splits the first dimension

    get_extra_state = nn.Module.get_extra_state
