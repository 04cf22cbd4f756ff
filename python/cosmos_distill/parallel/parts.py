"""What each parameter on this rank is of the whole network's tensor, and how its gradient becomes whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.distributed as dist
from torch import nn

from cosmos_distill.parallel import groups


@dataclass(frozen=True)
class Part:
    """One parameter or buffer. The default is what a module without parallelism inside has: every rank of
    the model group holds it whole and finds its whole gradient."""

    split: int | None = None
    """Dimension that is cut over the tensor-parallel ranks, in equal parts; None: it is whole."""
    one_stage: bool = False
    """Only one pipeline rank has it (a block); otherwise all have the same (the time embedding)."""
    sum_tensor: bool = False
    """Its gradient here is the share of this tensor-parallel rank (of its heads or its tokens)."""
    sum_pipeline: bool = False
    """Its gradient here is the share of this pipeline rank's blocks."""

    @property
    def copies(self) -> int:
        """Ranks of tensor x pipeline that hold the same values: sums over parameters divide by it."""
        layout = groups.layout()
        return (layout.tensor if self.split is None else 1) * (1 if self.one_stage else layout.pipeline)


@runtime_checkable
class Parallelised(Protocol):
    """A network that is spread over the ranks of its model group."""

    def parts(self) -> Mapping[str, Part]:
        """The part of every parameter and persistent buffer on this rank, by its global name."""


def parts_of(module: nn.Module) -> dict[str, Part]:
    """The part of every entry of ``module.state_dict()``."""
    if isinstance(module, Parallelised):
        return dict(module.parts())
    return {name: Part() for name in module.state_dict()}


def reduction_group(module: nn.Module) -> dist.ProcessGroup:
    """Ranks over which a gradient of ``module`` is summed after what its parts say: those with other samples
    and, of a parallelised network, those with other tokens of the same samples."""
    return groups.gradient_group() if isinstance(module, Parallelised) else groups.data_group()
