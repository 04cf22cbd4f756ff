"""Which clips are used for what: every clip of every place, with the split, the place and the shape it is in.

A :class:`Selection` is read off the sources that training and evaluation open, so that what is written down
of clips, as encoding does, is what these would read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cosmos_distill.config import Data
from cosmos_distill.data.buckets import BucketSource
from cosmos_distill.data.clips import Split
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.mixture import MixtureSource

HELD_OUT = "held_out"
"""The place that is ``data.held_out``."""


class Item(NamedTuple):
    """One clip, whether it can be used or not.

    Attributes:
        name: of its own among all.
        split: it is in.
        place: name of the source of a mixture, :data:`HELD_OUT` (or the like, where a source has that name),
            or "" of the only one.
        clip: what it is called there.
    """

    name: str
    split: Split
    place: str
    clip: str

    def plain(self) -> list[str]:
        """As JSON has it; of the only place as it always had."""
        return list(self) if self.place else [self.name, self.split]

    @classmethod
    def of_plain(cls, said: Sequence[Any]) -> Item:
        """What :meth:`plain` has written. ValueError or TypeError for anything else."""
        texts = [str(one) for one in said]
        if len(texts) == 2:
            texts += ["", texts[0]]
        name, split, place, clip = texts
        if split not in ("train", "eval"):
            raise ValueError(f"{split!r} is no split")
        return cls(name, "train" if split == "train" else "eval", place, clip)


@dataclass(frozen=True)
class _Leaf:
    place: str
    split: Split
    source: FolderSource


class Selection:
    """The clips of a recipe's data.

    Args:
        train: What training opens; of several shapes a :class:`~cosmos_distill.data.buckets.BucketSource`.
        held_out: What evaluation opens; None: nothing is held out.

    Attributes:
        places: of each split, (name, weight, number) of its places; the number is of a source of a mixture,
            by which it has a seed of its own (:func:`~cosmos_distill.data.mixture.seed_of`), else None.

    Raises:
        DataError: the clips are encoded already, or come with a package.
    """

    def __init__(self, data: Data, train: object, held_out: object | None) -> None:
        parts = data.parts()
        self._data = data
        held = ""
        if data.held_out is not None:
            held = HELD_OUT
            while held in {part.name for part in parts}:
                held += "_"
        mixture = [(p.name, p.weight, number if p.name else None) for number, p in enumerate(parts)]
        self.places: dict[Split, list[tuple[str, float, int | None]]] = {
            "train": mixture, "eval": [(held, 1.0, None)] if held else mixture,
        }  # fmt: skip
        self._leaves = [_Leaf(place, "train", source) for place, source in _leaves(train)]
        if held_out is not None:
            self._leaves += [_Leaf(held or place, "eval", source) for place, source in _leaves(held_out)]
        self._held = held

    @property
    def sources(self) -> list[FolderSource]:
        """All that is read, of every split, place and shape."""
        return [leaf.source for leaf in self._leaves]

    def items(self) -> Iterator[Item]:
        """Every clip: place after place, in the order of each."""
        done: set[str] = set()
        for leaf in self._leaves:
            if leaf.place in done:
                continue
            done.add(leaf.place)
            for clip, split in leaf.source.splits().items():
                yield Item(f"{leaf.place}/{clip}" if leaf.place else clip, split, leaf.place, clip)

    def source(self, item: Item) -> FolderSource | None:
        """What reads a clip, in its shape; None where it cannot be used."""
        of = (leaf.source for leaf in self._leaves if (leaf.place, leaf.split) == (item.place, item.split))
        return next((source for source in of if source.reads(item.clip)), None)

    def reason(self, item: Item) -> str:
        """Why a clip cannot be used."""
        for leaf in self._leaves:
            if leaf.place == item.place and (why := leaf.source.reason(item.clip)) is not None:
                return why
        if item.split == "eval" and self._data.buckets is not None:
            return f"is held out, and has fewer than the {self._data.frames} frames that are scored"
        return "there is nothing to hold out"

    def skipped(self) -> dict[str, str]:
        """Why what is no clip at all is not used, by name."""
        known = {item.name for item in self.items()}
        found: dict[str, str] = {}
        for leaf in self._leaves:
            for name, why in leaf.source.skipped.items():
                found.setdefault(f"{leaf.place}/{name}" if leaf.place else name, why)
        return {name: why for name, why in found.items() if name not in known}

    @property
    def several_shapes(self) -> bool:
        """Whether clips are of several shapes."""
        return self._data.buckets is not None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C, T, h, w] of the latents of what is drawn and scored."""
        one = shape_in(self._data)
        return self.shapes().get(one) or self.sources[0].latents_of(one)

    def shapes(self) -> Mapping[tuple[int, int, int], tuple[int, int, int, int]]:
        """(frames, height, width) of every shape that is read -> its latents' [C, T, h, w]."""
        return {shape_in(source.data): source.latent_shape for source in self.sources}


def shape_in(data: Data) -> tuple[int, int, int]:
    """The one shape of data without buckets."""
    return data.frames, data.height, data.width


def _leaves(source: object) -> Iterator[tuple[str, FolderSource]]:
    """The folders that a source reads, by their places."""
    if isinstance(source, FolderSource):
        yield "", source
    elif isinstance(source, MixtureSource):
        yield from source.parts()
    elif isinstance(source, BucketSource):
        for part in source.parts():
            yield from _leaves(part)
    else:
        raise DataError("the clips are encoded already, or come with a package")
