"""One batch of clips, and what has been computed of it: each network sees a batch once, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class View:
    """Clips that measures look at, uint8 ``video`` [B, 3, F, H, W].

    Args:
        real: The real clips that the conditions of ``video`` came from, in the same order; None for clips
            that are only compared as a set.
        codec: ``real`` after the tokenizer's round trip, same shape as ``video``.
        given: How many leading frames of each clip were given, int64 [B]; None: none.
        networks: Metric -> file or folder of the network that the user gives it.
        device: Where networks run.

    Raises:
        ValueError: clips that are not uint8 [B, 3, F, H, W], or of another shape than ``real``.
    """

    def __init__(
        self,
        video: Tensor,
        real: View | None = None,
        *,
        codec: Tensor | None = None,
        given: Tensor | None = None,
        networks: Mapping[str, Path] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if video.dtype != torch.uint8 or video.dim() != 5 or video.shape[1] != 3:
            raise ValueError(f"expected clips uint8 [B, 3, F, H, W], not {video.dtype} {list(video.shape)}")
        if real is not None and real.video.shape != video.shape:
            raise ValueError(
                f"clips {list(video.shape)} cannot be paired with real ones {list(real.video.shape)}"
            )
        self.video: Tensor = video
        self.codec, self.given = codec, given
        self.networks, self.device = networks or {}, torch.device(device)
        self._real = real
        self._known: dict[Callable[[View], Any], Any] = {}

    @property
    def real(self) -> View:
        """The clips that the conditions came from.

        Raises:
            ValueError: these clips are compared as a set only.
        """
        if self._real is None:
            raise ValueError("these clips have no real counterparts: measure them with View(video, real)")
        return self._real

    def of(self, compute: Callable[[View], T]) -> T:
        """``compute(self)``, computed once."""
        if compute not in self._known:
            with torch.no_grad():
                self._known[compute] = compute(self)
        known: T = self._known[compute]
        return known
