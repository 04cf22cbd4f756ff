"""Bytes of tensors that are alive, told of what every operation makes: of a step on the meta device, where
nothing has memory, as of one that computes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Live:
    """Bytes of memory that tensors have and of the most that they had at once, every memory counted once
    however many tensors share it.

    Args:
        known: what this one has seen does not count.

    Attributes:
        now: of what was seen and lives still.
        peak: the largest that :attr:`now` was since :meth:`begin`.
        beside: of gradients that were taken away.
        peak_beside: the largest sum of both.
    """

    def __init__(self, known: Live | None = None) -> None:
        self.now = self.peak = self.beside = self.peak_beside = 0
        self._known = known
        self._seen: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._with_gradient: set[Tensor] = set()

    def see(self, values: Any) -> None:
        """Tensors in any nesting, of which new ones count from now on to their end."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """What was there before, such as weights, does not count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = (0, weakref.ref(storage, self._forget(storage._cdata)))

    def gradient(self, parameter: Tensor) -> None:
        """A parameter has a gradient, in fp32 and taken away at once: :attr:`beside` grows by its first."""
        if parameter not in self._with_gradient:
            self._with_gradient.add(parameter)
            self.beside += 4 * parameter.numel()
            self.pulse(0)

    def hold(self, count: int) -> None:
        """So many bytes more, or less, of what no operation has shown."""
        self.now += count
        self.pulse(0)

    def pulse(self, count: int) -> None:
        """So many bytes more for a moment."""
        self.peak = max(self.peak, self.now + count)
        self.peak_beside = max(self.peak_beside, self.now + count + self.beside)

    def begin(self) -> None:
        """Forget the peaks."""
        self.peak, self.peak_beside = self.now, self.now + self.beside

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen or (self._known is not None and key in self._known._seen):
            return
        size = storage.nbytes()
        self._seen[key] = (size, weakref.ref(storage, self._forget(key)))
        self.now += size
        self.pulse(0)

    def _forget(self, key: int) -> Any:
        def gone(_: Any) -> None:
            self.now -= self._seen.pop(key)[0]

        return gone
