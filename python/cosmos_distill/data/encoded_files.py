"""Folders of encoded clips: what they hold, without reading a tensor of them.

``encoded.json`` says what the shards were made of and lists them with their hashes; beside each shard,
``shard-000000.tar``, lies its index ``shard-000000.json``. A shard is a WebDataset archive whose samples are
clips, called by their number in the folder::

    000000012.v0.safetensors, v1 ...   a window: ``latents`` as the tokenizer gives them [C, T, h, w], ``fps``
                                       [], ``hint`` [C, T, h, w] where there is a control, ``padding_mask``
                                       [1, h, w] and further conditioning
    000000012.v0.mkv, v1 ...           the pixels of a window, lossless (FFV1), where they are kept
    000000012.v0.control.mkv ...       likewise of its control where that comes from a file
    000000012.text.safetensors         ``text`` [tokens, channels], without the zeros behind the prompt
    000000012.json                     the clip's name and split, its windows, hashes of the parts above and
                                       of the files it was made from; or why it could not be used. Of several
                                       places (``place``) and shapes (``shape``) also those that it is of

Which places there are with which weights, and the latents' shapes, ``encoded.json`` says then.
Tensors are of the narrowest type that holds them exactly. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.config import Data
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.shard_lists import Place
from cosmos_distill.files import inside
from cosmos_distill.members import Member

if TYPE_CHECKING:
    from cosmos_distill.data.keeping import Fault
    from cosmos_distill.data.survey import Split

MANIFEST = "encoded.json"
NEGATIVE = "negative.safetensors"
FORMAT = 1
_AGAIN = "delete it, and the command that made the shards makes it again"
LARGEST = 2**34
"""Bytes of one member."""


@dataclass(frozen=True)
class Part:
    """A member of a shard, and the hash of its bytes."""

    member: Member
    sha256: str


@dataclass(frozen=True)
class Clip:
    """One clip as it was encoded.

    Attributes:
        number: in the folder, by which its members are called.
        parts: by what stands behind the first dot of their names.
        windows: what each is called.
        inputs: hashes of the files that it was made from, by what they are.
    """

    name: str
    split: Split
    number: int
    parts: Mapping[str, Part]
    windows: tuple[str, ...]
    inputs: Mapping[str, str]
    shape: tuple[int, int, int] | None = None
    """(frames, height, width) of its windows, where clips have several."""
    caption: None = None
    """It is encoded."""


def shape_name(shape: tuple[int, int, int]) -> str:
    """Of (frames, height, width)."""
    return "x".join(map(str, shape))


def shard_name(number: int) -> str:
    """Of a shard, without suffix."""
    return f"shard-{number:06d}"


class Encoded:
    """A folder of encoded clips as it was found. It answers as
    :class:`~cosmos_distill.data.survey.Survey` does.

    Attributes:
        said: ``encoded.json``.
        names: of all clips, in the order in which they were looked at, those that could not be used included.
        samples: the ones that can be used, by name.
        skipped: why the others cannot.
        left_out: by thresholds; those were asked for when the clips were encoded.

    Raises:
        DataError: a file is missing, damaged, or of another version.
    """

    def __init__(self, root: Path) -> None:
        self.place = Place.of(root)
        self.said: dict[str, Any] = _document(self.place, MANIFEST)
        if self.said.get("format") != FORMAT:
            raise DataError(
                f"{root}: {MANIFEST} is of format {self.said.get('format')!r}, and this version reads "
                f"{FORMAT}: encode the clips again, or take the version that made them"
            )
        self.names: tuple[str, ...] = ()
        self.samples: dict[str, Clip] = {}
        self.skipped: dict[str, str] = dict(self.said["skipped"])
        splits: dict[str, Split] = {}
        self._place_of: dict[str, str] = {}
        for listed in self.said["shards"]:
            for record in self._records(listed):
                splits[record["name"]] = record["split"]
                self._place_of[record["name"]] = record.get("place", "")
                if (why := record.get("skipped")) is not None:
                    self.skipped[record["name"]] = why
                else:
                    self.samples[record["name"]] = _clip(record, self.place, listed["name"])
        self.names = tuple(splits)
        self._splits = splits
        self.left_out: Mapping[str, Fault] = {}

    def _records(self, listed: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        name = str(listed["name"])
        if not inside(name) or "/" in name:
            raise DataError(f"{self.place}/{MANIFEST}: {name!r} is no name of a shard here: {_AGAIN}")
        index = _document(self.place, f"{name}.json")
        if index.get("sha256") != listed["sha256"] or index.get("bytes") != self.place.size(f"{name}.tar"):
            raise DataError(
                f"{self.place}/{name}.tar is damaged, or of another run than {MANIFEST}: {_AGAIN}"
            )
        records: list[Mapping[str, Any]] = index["clips"]
        return records

    def split(self, split: Split) -> list[str]:
        """Names of the clips of one split, those that could not be used included."""
        return [name for name in self.names if self._splits[name] == split]

    def usable(self, split: Split) -> list[Clip]:
        """The clips of one split that can be used. Raises DataError, with reasons, when there is none."""
        found = [self.samples[name] for name in self.split(split) if name in self.samples]
        if not found:
            from cosmos_distill.data.survey import reasons  # --help need not wait for it

            raise DataError(
                f"no usable clip for {split} in {self.place} ({len(self.samples)} usable of "
                f"{len(self.names)}).{reasons(self.skipped)}"
            )
        return found

    def long_enough(self, split: Split, data: Data) -> list[Clip]:
        """The clips of one split that are of the one shape of ``data``. Raises like :meth:`usable`."""
        shape = data.frames, data.height, data.width
        return [clip for clip in self.usable(split) if (clip.shape or self.shape) == shape]

    def of_shape(
        self, split: Split, place: str, shape: tuple[int, int, int]
    ) -> tuple[list[Clip | None], float]:
        """The clips of one split and place in order, None for those that cannot be used or are of another
        shape; and how many these are of all that can be used."""
        named = [self.samples.get(n) for n in self.split(split) if self._place_of[n] == place]
        usable = [clip for clip in named if clip is not None]
        chosen = [None if c is None or (c.shape or self.shape) != shape else c for c in named]
        return chosen, sum(clip is not None for clip in chosen) / max(1, len(usable))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of what is drawn and scored."""
        made = self.said["made"]
        return made["frames"], made["height"], made["width"]

    @property
    def buckets(self) -> list[tuple[int, int, int]] | None:
        """The shapes of clips for training, where there are several."""
        said = self.said["made"].get("buckets")
        return None if said is None else [_shape(one) for one in said]

    @property
    def places(self) -> dict[Split, list[tuple[str, float, int | None]]]:
        """Of each split (name, weight, number) of the places of its clips, as
        :class:`~cosmos_distill.data.selection.Selection` has them."""
        one: list[Any] = [["", 1.0, None]]
        said = self.said.get("places") or {"train": one, "eval": one}
        return {
            "train": [(name, weight, number) for name, weight, number in said["train"]],
            "eval": [(name, weight, number) for name, weight, number in said["eval"]],
        }

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """[C, T, h, w] of the latents of a shape."""
        said = self.said.get("latent_shapes") or {}
        channels, frames, height, width = said.get(shape_name(shape), self.said["latent_shape"])
        return channels, frames, height, width

    def hashes(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """SHA-256 of every part of these clips, as it was when it was written."""
        return {
            name: {kind: part.sha256 for kind, part in self.samples[name].parts.items()} for name in names
        }

    @property
    def projection(self) -> str | None:
        """Hash of the frozen layer of a network behind which the embeddings are; None: behind none."""
        encoder = (self.said.get("text") or {}).get("encoder") or {}
        found: str | None = encoder.get("projection")
        return found

    def misfits(self, data: Data, control: str | None, text_channels: int | None) -> list[str]:
        """What the clips were encoded for, and is asked for otherwise now."""
        made = self.said["made"]
        asked = asked_of(data, control)
        found = [
            f"{self.place} was encoded with {'' if name == 'control' else 'data.'}{name} {made.get(name)}, "
            f"and {value} is asked for: set it to {made.get(name)}, or encode the clips again"
            for name, value in asked.items()
            if made.get(name) != value
        ]
        if data.buckets is not None and [_shape(one) for one in data.buckets] != self.buckets:
            found.append(
                f"{self.place} was not encoded with these data.buckets: leave them out, or encode the clips "
                "again"
            )
        if data.keep.asks:
            found.append(
                f"{self.place}: thresholds (data.keep) choose clips when they are encoded: encode with these"
            )
        if data.cuts not in (None, made.get("cuts")):
            found.append(
                f"{self.place} was encoded with data.cuts {made.get('cuts')}: cuts are found when clips are "
                f"encoded: encode with {data.cuts}, or leave it out"
            )
        width = self.said["text_channels"]
        if text_channels is not None and self.projection is None and width != text_channels:
            found.append(
                f"{self.place}: its prompts have {width} channels, and the network takes {text_channels}: "
                "encode the clips for this network"
            )
        return found


def asked_of(data: Data, control: str | None) -> dict[str, Any]:
    """What of a recipe decides what encoded clips are, as far as reading them has to agree."""
    return {
        "frames": data.frames,
        "height": data.height,
        "width": data.width,
        "stride": data.stride,
        "fps": data.fps,
        "tokenizer": data.tokenizer,
        "control": control,
    }


def made_for(data: Data, control: str | None) -> dict[str, Any]:
    """What encoded clips say that they were made for: :func:`asked_of`, and what chose their windows."""
    found = asked_of(data, control) | {"cuts": data.cuts}
    if data.buckets is not None:
        found["buckets"] = [list(shape) for shape in data.buckets]
    return found


def missing(folder: Path) -> str:
    """What is missing of a folder whose stage was complete, in words; empty where nothing is."""
    try:
        Encoded(folder)
    except DataError as error:
        return str(error)
    return ""


def is_encoded(root: Path) -> bool:
    """Whether a place holds encoded clips."""
    place = Place.of(root)
    return place.is_folder() and place.has(MANIFEST)


def _clip(record: Mapping[str, Any], place: Place, shard: str) -> Clip:
    archive = place.at(f"{shard}.tar")
    try:
        parts = {
            kind: Part(Member(archive, f"{record['number']:09d}.{kind}", int(offset), int(size)), str(digest))
            for kind, (offset, size, digest) in record["parts"].items()
        }
        windows = tuple(map(str, record["windows"]))
        if "text.safetensors" not in parts or any(
            f"v{v}.safetensors" not in parts for v in range(len(windows))
        ):
            raise ValueError("parts are missing")
        return Clip(
            record["name"],
            record["split"],
            int(record["number"]),
            parts,
            windows,
            dict(record["inputs"]),
            _shape(record["shape"]) if "shape" in record else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}/{shard}.json is damaged ({error}): {_AGAIN}") from error


def _shape(said: Sequence[Any]) -> tuple[int, int, int]:
    frames, height, width = map(int, said)
    return frames, height, width


def _document(place: Place, name: str) -> dict[str, Any]:
    found = place.json(name)
    if not isinstance(found, dict):
        raise DataError(f"{place}/{name} is damaged: {_AGAIN}")
    return found
