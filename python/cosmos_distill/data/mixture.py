"""Clips of several sources in one stream, each as often as its weight says.

Which source sample n is from, and which of its samples, depends on the seed, the weights and n alone. Blocks
of :data:`BLOCK` samples hold every source as often as its weight is of all, to the next whole number, in an
order that is drawn for each block; a source's own samples follow each other, so that none is drawn twice
before its source says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.randomness import generator

if TYPE_CHECKING:
    from cosmos_distill.data.folder import FolderSource

BLOCK = 2**16
"""Samples in which every source has its share exactly."""
_KEPT = 2
"""Blocks in memory: a batch may reach from one into the next."""


class Shares:
    """Which source every sample of a stream is from.

    Args:
        weights: Of the sources, above 0.
        stream: Name of the stream, for its randomness.
    """

    def __init__(self, weights: Sequence[float], seed: int, stream: str) -> None:
        self._seed, self._stream = seed, stream
        self._counts = _whole_numbers(np.array(weights, np.float64), BLOCK)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, index: int) -> tuple[int, int]:
        """Source of sample ``index``, and the number of the sample among those of its source."""
        block, position = divmod(index, BLOCK)
        sources, within = self._block(block)
        source = int(sources[position])
        return source, block * int(self._counts[source]) + int(within[position])

    def seen(self, samples: int) -> list[int]:
        """How many of the first samples are from each source."""
        blocks, rest = divmod(samples, BLOCK)
        found = blocks * self._counts
        if rest:
            found = found + np.bincount(self._block(blocks)[0][:rest], minlength=len(found))
        return [int(count) for count in found]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of every sample of a block, and its number in the block among those of its source."""
        if (known := self._blocks.get(block)) is not None:
            return known
        sources = np.repeat(np.arange(len(self._counts)), self._counts)
        sources = generator(self._seed, f"sources of {self._stream}", block).permutation(sources)
        within = np.empty(BLOCK, np.int64)
        for source, count in enumerate(self._counts):
            within[sources == source] = np.arange(count)
        while len(self._blocks) >= _KEPT:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[block] = sources, within
        return self._blocks[block]


def _whole_numbers(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the ratio of the weights, at least 1 each, whose sum is ``total``: what rounding down
    leaves goes to those that lost most."""
    exact = weights / weights.sum() * total
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (left := total - int(counts.sum())) != 0:
        if left > 0:
            counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        else:  # of those that have most, what the smallest were given
            counts[np.argmax(counts)] -= 1
    return counts


def seed_of(seed: int, source: int) -> int:
    """Seed of one of the sources, whose draws are not those of the others."""
    return int(generator(seed, "source", source).integers(2**63))


class MixtureSource(ClipSource):
    """A :class:`~cosmos_distill.data.sources.Source` over several folders.

    Args:
        names: Of the sources, each once.
        weights: How often a sample is of each, not normalised.
        parts: The sources, which share a tokenizer and a split.
    """

    def __init__(
        self, names: Sequence[str], weights: Sequence[float], parts: Sequence[FolderSource], seed: int
    ) -> None:
        self._be_like(parts[0], seed)
        self._names, self._weights, self._parts = tuple(names), tuple(weights), tuple(parts)
        self._shares = Shares(weights, self.seed, self.split)

    def parts(self) -> Iterator[tuple[str, FolderSource]]:
        """The sources, by name."""
        return zip(self._names, self._parts, strict=True)

    def decoded(self, index: int) -> Decoded:
        """Sample ``index``. Raises DataError when nothing can be read any more of its source."""
        source, within = self._shares.of(index)
        sample = self._parts[source].decoded(within)
        return replace(sample, name=f"{self._names[source]}/{sample.name}", source=source)

    def learn(self, sample: Decoded) -> None:
        """Have the sample's source take note of what another process met."""
        self._parts[sample.source].learn(sample)

    @property
    def skipped(self) -> dict[str, str]:
        """Why clips are not used, by source and name."""
        parts = zip(self._names, self._parts, strict=True)
        return {f"{where}/{name}": why for where, part in parts for name, why in part.skipped.items()}

    def seen(self, samples: int) -> dict[str, int]:
        """How many of the first samples of the stream are from each source."""
        return dict(zip(self._names, self._shares.seen(samples), strict=True))

    def description(self) -> dict[str, Any]:
        """That of every source, and its weight."""
        sources = {
            name: {"weight": weight, **part.description()}
            for name, weight, part in zip(self._names, self._weights, self._parts, strict=True)
        }
        left_out = sum((Counter(one["left_out"]) for one in sources.values()), Counter[str]())
        return {
            "source": "mixture",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "sources": sources,
            "left_out": dict(left_out),
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }
