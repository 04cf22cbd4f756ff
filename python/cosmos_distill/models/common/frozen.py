"""Weights that no training may move, whatever wraps the network that holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F


class FrozenParameter(nn.Parameter):
    """A parameter without gradient for good: ``requires_grad_`` of it, or of any module around it, is without
    effect."""

    def __new__(cls, data: Tensor, requires_grad: bool = False) -> Self:
        return super().__new__(cls, data, requires_grad=False)

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        """Stay frozen."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stay frozen."""
        return self


class FrozenLinear(nn.Linear):
    """A linear whose weights stay as they are loaded, under the names that they have in nn.Linear.

    Wrappers that replace parameters by tensors of their own (FSDP) lose the mark; no gradient reaches those
    either, and an optimiser leaves alone what has no gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.detach(), None if self.bias is None else self.bias.detach())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, FrozenParameter(param) if type(param) is nn.Parameter else param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        return self._freeze()  # leaving the meta device makes plain parameters

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._freeze()  # a pickle holds plain parameters

    def _freeze(self) -> Self:
        for name, parameter in self._parameters.items():
            self.register_parameter(name, parameter)
        return self
