"""Clips of several shapes in one stream: every global batch is of one of them.

Which shape global batch g is of depends on the seed, the clips of each shape and g alone, so that every
layout and every micro-batch sees the same. A clip is of the shape whose aspect ratio is nearest to its own
among those that it is long enough for, and of these of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.mixture import MixtureSource, Shares


@runtime_checkable
class Several(Protocol):
    """A source of several places or shapes."""

    def seen(self, samples: int) -> dict[str, int]:
        """How many of the first samples of the stream are of each."""


def seen_of_shapes(
    shares: Shares, group: int, names: Sequence[str], parts: Sequence[object], samples: int
) -> dict[str, int]:
    """How many of the first samples of a stream are of each shape, and of each source in it.

    Args:
        shares: Of which shape a global batch is.
        group: Samples of a global batch.
        names: Of the shapes.
        parts: The sources of each.
    """
    groups, rest = divmod(samples, group)
    counts = [count * group for count in shares.seen(groups)]
    if rest:
        counts[shares.of(groups)[0]] += rest
    found: dict[str, int] = {}
    for name, part, count in zip(names, parts, counts, strict=True):
        own = part.seen(count) if isinstance(part, Several) else {"": count}
        found |= {f"{name} {source}".strip(): number for source, number in own.items()}
    return found


class BucketSource(ClipSource):
    """A :class:`~cosmos_distill.data.sources.Source` whose global batches are of one shape each.

    Args:
        parts: A source for every shape, by its name.
        weights: How often a global batch is of each, not normalised.
        group: Samples of a global batch.
        seed: Of the draw.
    """

    def __init__(
        self,
        parts: Mapping[str, FolderSource | MixtureSource],
        weights: Sequence[float],
        group: int,
        seed: int,
    ) -> None:
        self._be_like(next(iter(parts.values())), seed)
        self._names, self._parts, self._group = tuple(parts), tuple(parts.values()), group
        self._shares = Shares(weights, seed, "buckets")

    def parts(self) -> Iterator[FolderSource | MixtureSource]:
        """The sources of all shapes."""
        return iter(self._parts)

    def _part(self, index: int) -> tuple[FolderSource | MixtureSource, int]:
        """The source of a sample, and the sample's number in it."""
        group, within = divmod(index, self._group)
        bucket, number = self._shares.of(group)
        return self._parts[bucket], number * self._group + within

    def decoded(self, index: int) -> Decoded:
        """Sample ``index``. Raises DataError when nothing can be read any more of its shape."""
        part, number = self._part(index)
        return part.decoded(number)

    def encoded(self, first: int, samples: Sequence[Decoded]) -> Batch:
        """The batch of samples that were decoded, which are of one global batch.

        Raises:
            ValueError: they are of two.
            DataError: the tokenizer gave NaN or infinity.
        """
        if first // self._group != (first + len(samples) - 1) // self._group:
            raise ValueError(f"samples {first} to {first + len(samples) - 1} are of two global batches")
        return self._part(first)[0].encoded(first, samples)

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each, of samples of one global batch."""
        part, number = self._part(first)
        return part.pixels(number, count)

    @property
    def skipped(self) -> dict[str, str]:
        """Why clips are not used, by name."""
        return {name: why for part in self._parts for name, why in part.skipped.items()}

    def seen(self, samples: int) -> dict[str, int]:
        """How many of the first samples of the stream are of each shape, and of each source in it."""
        return seen_of_shapes(self._shares, self._group, self._names, self._parts, samples)

    def description(self) -> dict[str, Any]:
        """That of every shape."""
        parts = {name: part.description() for name, part in zip(self._names, self._parts, strict=True)}
        return {
            "source": "buckets",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "buckets": parts,
            "left_out": next(iter(parts.values()))["left_out"],
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }
