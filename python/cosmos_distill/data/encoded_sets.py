"""Encoded clips of several places and shapes as one source: drawn as the clips themselves are
(:mod:`~cosmos_distill.data.mixture`, :mod:`~cosmos_distill.data.buckets`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cosmos_distill.config import Data
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.buckets import seen_of_shapes
from cosmos_distill.data.clips import Split
from cosmos_distill.data.encoded import EncodedSource
from cosmos_distill.data.encoded_files import Encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.mixture import Shares, seed_of
from cosmos_distill.tokenizers import Tokenizer


class EncodedMixture:
    """A :class:`~cosmos_distill.data.sources.Source` over encoded clips of several places.

    Args:
        names: Of the places, each once.
        weights: How often a sample is of each, not normalised.
    """

    def __init__(
        self, names: Sequence[str], weights: Sequence[float], parts: Sequence[EncodedSource], seed: int
    ) -> None:
        first = parts[0]
        self.seed, self.split, self.control = seed, first.split, first.control
        self.latent_shape, self.text_shape = first.latent_shape, first.text_shape
        self._names, self._parts, self._weights = tuple(names), tuple(parts), tuple(weights)
        self._shares = Shares(weights, seed, first.split)

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1. DataError when a part of one is damaged or missing."""
        found = []
        for index in range(first, first + count):
            source, within = self._shares.of(index)
            one = self._parts[source].batch(within, 1)
            found.append(replace(one, names=(f"{self._names[source]}/{one.names[0]}",)))
        rows = [one.tensors() for one in found]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise DataError("encoded clips of one batch have other parts than each other: encode them anew")
        together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return Batch.of(first, together, tuple(one.names[0] for one in found))

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each."""
        places = [self._shares.of(index) for index in range(first, first + count)]
        videos, hints = zip(
            *(self._parts[source].pixels(within, 1) for source, within in places), strict=True
        )
        return torch.cat(videos), None if hints[0] is None else torch.cat(hints)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self._parts[0].decode(latents)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why clips could not be used when they were encoded, by name."""
        return self._parts[0].skipped

    def seen(self, samples: int) -> dict[str, int]:
        """How many of the first samples of the stream are from each place."""
        return dict(zip(self._names, self._shares.seen(samples), strict=True))

    def description(self) -> dict[str, Any]:
        """That of every place, and its weight."""
        parts = zip(self._names, self._weights, self._parts, strict=True)
        return {
            "source": "mixture",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "sources": {name: {"weight": weight, **part.description()} for name, weight, part in parts},
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }


class EncodedBuckets:
    """A :class:`~cosmos_distill.data.sources.Source` over encoded clips, whose global batches are of one
    shape each.

    Args:
        parts: A source for every shape, by its name.
        weights: How often a global batch is of each, not normalised.
        group: Samples of a global batch.
    """

    def __init__(
        self,
        parts: Mapping[str, EncodedSource | EncodedMixture],
        weights: Sequence[float],
        group: int,
        seed: int,
    ) -> None:
        first = next(iter(parts.values()))
        self.seed, self.split, self.control = seed, first.split, first.control
        self.latent_shape, self.text_shape = first.latent_shape, first.text_shape
        self._names, self._parts, self._group = tuple(parts), tuple(parts.values()), group
        self._shares = Shares(weights, seed, "buckets")

    def _part(self, index: int) -> tuple[EncodedSource | EncodedMixture, int]:
        group, within = divmod(index, self._group)
        bucket, number = self._shares.of(group)
        return self._parts[bucket], number * self._group + within

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1. ValueError where they are of two global batches."""
        if first // self._group != (first + count - 1) // self._group:
            raise ValueError(f"samples {first} to {first + count - 1} are of two global batches")
        part, number = self._part(first)
        return replace(part.batch(number, count), first=first)

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each, of samples of one global batch."""
        part, number = self._part(first)
        return part.pixels(number, count)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self._parts[0].decode(latents)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why clips could not be used when they were encoded, by name."""
        return self._parts[0].skipped

    def seen(self, samples: int) -> dict[str, int]:
        """How many of the first samples of the stream are of each shape, and of each place in it."""
        return seen_of_shapes(self._shares, self._group, self._names, self._parts, samples)

    def description(self) -> dict[str, Any]:
        """That of every shape."""
        return {
            "source": "buckets",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "buckets": {n: part.description() for n, part in zip(self._names, self._parts, strict=True)},
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }


def open_encoded(
    data: Data,
    control: str | None,
    seed: int,
    *,
    split: Split,
    group: int | None,
    tokenizer: Callable[[], Tokenizer],
    text_channels: int,
    text_tokens: int | None,
    sigma_data: float,
    projection: str | None,
) -> EncodedSource | EncodedMixture | EncodedBuckets:
    """The encoded clips of a split, as :func:`~cosmos_distill.data.sources.open_source` opens clips.

    Raises:
        DataError: they were encoded for another recipe, none can be used, or a file is damaged.
    """
    assert data.root is not None
    found = Encoded(data.root)
    if misfits := found.misfits(data, control, text_channels):
        raise DataError("\n".join(misfits))
    found.usable(split)  # says why where there is none
    places = found.places[split]
    total = sum(weight for _, weight, _ in places)

    def opened(shape: tuple[int, int, int]) -> tuple[EncodedSource | EncodedMixture | None, float]:
        """The clips of a shape, and how many of all clips these are, by the weights of places."""
        there: list[tuple[str, float, EncodedSource]] = []
        for place, weight, number in places:
            chosen, share = found.of_shape(split, place, shape)
            if share:
                source = EncodedSource(
                    found, chosen, data, control, seed if number is None else seed_of(seed, number),
                    split=split, shape=shape, tokenizer=tokenizer, text_tokens=text_tokens,
                    text_channels=text_channels, sigma_data=sigma_data, projection=projection,
                )  # fmt: skip
                there.append((place, weight / total * share, source))
        if not there:
            return None, 0.0
        names, weights, sources = zip(*there, strict=True)
        if places[0][2] is None:
            return sources[0], weights[0]
        return EncodedMixture(names, weights, sources, seed), sum(weights)

    if group is None or found.buckets is None or split != "train":
        source, _ = opened(found.shape)
        if source is None:
            frames, height, width = found.shape
            raise DataError(
                f"{found.place}: no clip for {split} was encoded with {frames} frames of {height} x {width}, "
                "which are drawn: take the clips themselves"
            )
        return source
    shapes = {
        f"{frames}x{height}x{width}": opened((frames, height, width))
        for frames, height, width in found.buckets
    }
    whole = {name: source for name, (source, _) in shapes.items() if source is not None}
    return EncodedBuckets(whole, [shapes[name][1] for name in whole], group, seed)
