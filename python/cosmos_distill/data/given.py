"""Samples that a program hands over: from a sequence, shuffled by a seed, or from anything that iterates.

A sample is a mapping of tensors by name: ``latents`` [C, T, H, W] and ``text`` [L, D], and where there are
some ``negative_text`` (else zeros), ``hint`` [C', T, H, W], ``fps``, ``padding_mask`` [1, H, W] and, of
pairs, ``noise``; a tensor of another name is handed to the network under that name. A mapping whose latents
have five dimensions is a batch of samples, every tensor with one dimension more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.data.batch import Batch
from cosmos_distill.data.errors import DataError
from cosmos_distill.randomness import generator

_AGAIN = "give what can be iterated more than once, such as a list or a DataLoader, instead of an iterator"

_SHAPES = {
    "latents": "[C, T, H, W]",
    "text": "[L, D]",
    "negative_text": "[L, D]",
    "hint": "[C, T, H, W]",
    "fps": "[]",
    "padding_mask": "[1, H, W]",
    "noise": "[C, T, H, W]",
}
"""Of one sample's tensors that have a meaning of their own."""
_NEEDED = ("latents", "text")
_ANY_NUMBERS = ("fps", "padding_mask")

Sample = Mapping[str, Tensor]


@runtime_checkable
class Source(Protocol):
    """Samples ``first .. first+count-1`` of an endless stream, each a function of its number."""

    def batch(self, first: int, count: int) -> Batch:
        """These samples."""


def source_of(data: Source | Sequence[Sample] | Iterable[Sample], seed: int) -> Source:
    """``data`` as a source: one is taken as it is, a sequence is shuffled by ``seed``, and anything else is
    iterated over and over.

    Raises:
        TypeError: it is none of these.
        DataError: it is empty.
    """
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping):
        return Shuffled(data, seed)  # before the next: some data sets have a method of that name
    if isinstance(data, Source):
        return data
    if isinstance(data, Iterable) and not isinstance(data, Mapping):
        return Stream(data)
    raise TypeError(
        f"data is a {type(data).__name__}: give a sequence of samples, something that iterates over them, or "
        "an object with batch(first, count)"
    )


class Shuffled:
    """The samples of a sequence, in another order in every epoch, by the seed alone.

    Args:
        samples: a list, or a torch Dataset: what has a length and is indexed from 0.

    Raises:
        DataError: it is empty.
    """

    def __init__(self, samples: Any, seed: int) -> None:
        if not len(samples):
            raise DataError("data holds no sample")
        self.samples, self.seed = samples, seed
        self._epoch, self._order = -1, np.empty(0, int)

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1 of the endless stream."""
        return together(first, [self._sample(n) for n in range(first, first + count)])

    def _sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.samples))
        if epoch != self._epoch:
            order = generator(self.seed, "order", epoch).permutation(len(self.samples))
            self._epoch, self._order = epoch, order
        index = int(self._order[place])
        return checked(self.samples[index], f"data[{index}]")


class Stream:
    """The samples of an iterable, in its own order; at its end it is iterated again.

    A run that goes on, and the ranks of one, pass over what others have used: iterating has to give the same
    samples every time, as a DataLoader does whose generator is seeded.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self._samples: Iterator[Sample] = iter(())
        self._held: list[Sample] = []
        self._next = 0

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1 of the endless stream.

        Raises:
            DataError: there is none, or an iterator that cannot begin again has come to its end.
        """
        if first < self._next - len(self._held) or not self._next:
            if self._next and isinstance(self.items, Iterator):
                raise DataError(f"data is an iterator beyond sample {first}: {_AGAIN}")
            self._samples, self._held, self._next = self._endless(), [], 0
        # What was read last may be asked for again: the first sample is looked at before training begins.
        held = self._held[max(0, first - self._next + len(self._held)) :] if first < self._next else []
        skip, more = max(0, first - self._next), max(0, count - len(held))
        found = [*held[:count], *islice(self._samples, skip, skip + more)]
        if more:
            self._held, self._next = found, first + count
        return together(first, found)

    def _endless(self) -> Iterator[Sample]:
        number = 0
        while True:
            begun = number
            for item in self.items:
                for sample in _samples_of(item, f"item {number} of data"):
                    yield sample
                    number += 1
            if number == begun:
                raise DataError(
                    "data holds no sample"
                    if not begun
                    else f"data ended after {begun} samples and cannot begin again: {_AGAIN}"
                )


def _samples_of(item: Any, name: str) -> Iterator[Sample]:
    if isinstance(item, Mapping) and isinstance(item.get("latents"), Tensor) and item["latents"].ndim == 5:
        tensors = {key: value for key, value in item.items() if isinstance(value, Tensor)}
        for index in range(len(item["latents"])):
            yield checked({key: value[index] for key, value in tensors.items()}, f"{name}, sample {index}")
    else:
        yield checked(item, name)


def checked(sample: Any, name: str) -> Sample:
    """``sample`` with its tensors alone, if it is one.

    Raises:
        DataError: it is no mapping with names, latents or text are missing, what is known has another number
            of dimensions or is no floating-point number, or a tensor has no values.
    """
    if not isinstance(sample, Mapping):
        raise DataError(f"{name} is a {type(sample).__name__}: give a mapping of tensors by name")
    if odd := [key for key in sample if not isinstance(key, str)]:
        raise DataError(f"{name} has a key that is no name but a {type(odd[0]).__name__}")
    tensors = {key: value for key, value in sample.items() if isinstance(value, Tensor)}
    for key, shape in _SHAPES.items():
        if key in sample and sample[key] is not None and key not in tensors:
            raise DataError(f"{name}: {key} is a {type(sample[key]).__name__}: give a tensor {shape}")
        if key not in tensors:
            if key in _NEEDED:
                raise DataError(
                    f"{name} has no tensor {key!r} {shape}: it holds {', '.join(sample) or 'nothing'}"
                )
            continue
        if tensors[key].ndim != len(shape.strip("[]").split()):
            raise DataError(f"{name}: {key} is {list(tensors[key].shape)} and should be {shape}")
        if key not in _ANY_NUMBERS and not tensors[key].is_floating_point():
            raise DataError(f"{name}: {key} is {tensors[key].dtype} and should be floating point")
    for key, value in tensors.items():
        if value.is_meta:
            raise DataError(f"{name}: {key} is on the meta device, where tensors have no values")
    if "noise" in tensors and tensors["noise"].shape != tensors["latents"].shape:
        shapes = (list(tensors[key].shape) for key in ("noise", "latents"))
        raise DataError("{}: noise is {} and the latents are {}: both have one shape".format(name, *shapes))
    return tensors


def together(first: int, samples: Sequence[Sample]) -> Batch:
    """A batch of samples, in fp32.

    Raises:
        DataError: they have different tensors, or tensors of different sizes.
    """
    names = samples[0].keys()
    for number, sample in enumerate(samples, first):
        for name in names | sample.keys():
            shapes = [tuple(s[name].shape) if name in s else None for s in (samples[0], sample)]
            if shapes[0] != shapes[1]:
                raise DataError(
                    f"samples {first} and {number} differ in {name}, {shapes[0]} and {shapes[1]}: all "
                    "samples have to have the same tensors in the same sizes"
                )
    return complete(first, {name: torch.stack([sample[name] for sample in samples]) for name in names})


def complete(first: int, tensors: Mapping[str, Tensor]) -> Batch:
    """The batch of ``tensors``, each with B samples first: in fp32, but for integers, and with zeros for a
    negative text that is not there.

    Raises:
        DataError: they do not go together, as a negative of what is not there.
    """
    there = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    try:
        return Batch.of(first, {"negative_text": torch.zeros_like(there["text"]), **there})
    except ValueError as error:
        raise DataError(f"samples from {first} on: {error}") from error
