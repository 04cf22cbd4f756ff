"""Several control branches side by side: their hints, and the weights of what they add."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cosmos_distill.models.common.dit import Recompute, Stack


class Branches(nn.Module):
    """Those of all controls, in their order."""

    def __init__(self, branches: Iterable[Stack]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    @property
    def activation_checkpointing(self) -> Recompute:
        """Of every branch."""
        found: Recompute = self.branches[0].activation_checkpointing  # type: ignore[assignment]
        return found

    @activation_checkpointing.setter
    def activation_checkpointing(self, what: Recompute) -> None:
        for branch in self.branches:
            branch.activation_checkpointing = what  # type: ignore[assignment]


def hints_of(hint: torch.Tensor, branches: int, most: int) -> tuple[torch.Tensor, ...]:
    """The hint of each branch, of one [B, branches * C, T, H, W] that has them one after the other.

    Raises:
        ValueError: it has not as many, or they have more than ``most`` channels.
    """
    each, more = divmod(hint.shape[1], branches)
    if more or not 0 < each <= most:
        raise ValueError(
            f"hint has {hint.shape[1]} channels: the network takes {branches} controls of up to {most} each"
        )
    return hint.chunk(branches, dim=1)


def weight_of_each(weight: float | torch.Tensor, x: torch.Tensor, branches: int) -> float | torch.Tensor:
    """``control_weight`` of a network with several branches as these multiply by it.

    Args:
        weight: A number for all controls; one for each, [branches], or [B, branches] by sample; a map for
            all, [B, T, H/p, W/p]; or one for each, [B, branches, T, H/p, W/p].

    Returns:
        The number; or of maps and several numbers [B, branches, 1 or T * H/p * W/p, 1].
    """
    if not isinstance(weight, torch.Tensor):
        return weight
    weight = weight.to(x)
    if weight.ndim == 1:
        weight = weight.expand(len(x), -1)[:, :, None]
    elif weight.ndim == 2:
        weight = weight[..., None]
    elif weight.ndim == 4:
        weight = weight.flatten(1)[:, None].expand(-1, branches, -1)
    else:
        weight = weight.flatten(2)
    if weight.shape[1] != branches:
        raise ValueError(f"control_weight is for {weight.shape[1]} controls, and the network has {branches}")
    return weight[..., None]
