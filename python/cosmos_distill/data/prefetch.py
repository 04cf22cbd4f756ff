"""Make the next batches in a thread while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from cosmos_distill.data.batch import Batch
from cosmos_distill.data.sources import Source


class Prefetch:
    """A source whose following ``depth`` batches are prepared ahead, in order, by one thread.

    A source is stateless, so guessing wrong costs time only: after ``batch(first, count)`` the guess is
    that the next call asks for ``count`` samples from ``following(first + count)`` on (by default that
    number itself; a data-parallel rank passes :func:`within_share`). An error of the source is raised by
    the call that asked for its batch.
    """

    def __init__(
        self, source: Source, depth: int = 2, following: Callable[[int], int] = lambda first: first
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self._source, self._depth, self._following = source, depth, following
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[tuple[tuple[int, int], Future[Batch]]] = deque()

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """That of the source."""
        return self._source.latent_shape

    @property
    def text_shape(self) -> tuple[int, int]:
        """That of the source."""
        return self._source.text_shape

    @property
    def skipped(self) -> Mapping[str, str]:
        """Clips that the source could not use, and why."""
        found: Mapping[str, str] = getattr(self._source, "skipped", {})
        return found

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, equal to what the source itself gives."""
        if not self._ahead or self._ahead[0][0] != (first, count):
            self._drop()
            self._ask(first, count)
        _, future = self._ahead.popleft()
        following = self._ahead[-1][0][0] if self._ahead else first
        while len(self._ahead) < self._depth:
            following = self._following(following + count)
            self._ask(following, count)
        return future.result()

    def _ask(self, first: int, count: int) -> None:
        self._ahead.append(((first, count), self._executor.submit(self._source.batch, first, count)))

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def close(self) -> None:
        """Stop the thread; batches in preparation are thrown away."""
        self._drop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the source gives them, without reading ahead."""
        return self._source.pixels(first, count)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """By the source."""
        return self._source.decode(latents)

    def description(self) -> dict[str, Any]:
        """That of the source."""
        return self._source.description()


def within_share(share: int, ranks: int) -> Callable[[int], int]:
    """The next sample of a data-parallel rank that goes through the stream in order: after its ``share``
    samples of a step those of the ``ranks - 1`` others come first."""
    return lambda first: first if first % share else first + share * (ranks - 1)
