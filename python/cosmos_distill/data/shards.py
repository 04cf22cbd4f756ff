"""Clips in WebDataset shards: which there are, found out once at opening.

A sample is what shares a name up to the first dot::

    <id>.mp4                          the clip, or another suffix of videos; or a photo (jpg, png, webp)
    <id>.t5_xxl.safetensors|npz       T5-XXL embedding of its prompt, or data.text_folder another
    <id>.txt|json                     caption, where that is missing and data.text_encoder is given
    <id>.<control>.mp4                control video that covers the times of the clip

Other members are left alone. A clip is called ``<shard>/<id>``. Held out for evaluation are the shards that a
dataset of Megatron-Energon has for that, or else every fifth clip in the order of the shards and in them. As
of folders (:mod:`~cosmos_distill.data.survey`), what cannot be used by itself is skipped, named and counted.
Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cosmos_distill.config import Data
from cosmos_distill.data import archives, captions, clips
from cosmos_distill.data.archives import Contents
from cosmos_distill.data.caption_files import SUFFIXES, of_member
from cosmos_distill.data.captions import LONGEST, Caption
from cosmos_distill.data.companions import ARRAYS, Found, Unusable
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index
from cosmos_distill.data.photos import PHOTO_SUFFIXES, UNASKED
from cosmos_distill.data.shard_lists import Shard, listed
from cosmos_distill.data.text import PICKLES, refuse_pickle
from cosmos_distill.members import File, Member, read_bytes

_SAMPLE = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<part>[^/]+)")
"""A member's name: what its sample is called, and which part of it it is."""
_LARGEST_CAPTION = 2**20
"""Bytes."""
_ABOUT_ITSELF = re.compile(r"__[^/]*__(?:$|/)")
"""Members about the archive, not of a sample."""


@dataclass
class _Sample:
    """One sample of a shard."""

    start: int
    """Where the header of its first member begins."""
    parts: dict[str, Member] = field(default_factory=dict)
    """Its members by what stands behind the first dot of their names, in lower case."""
    fault: str | None = None


def found(data: Data, control: str | None, index: Index, photos: bool) -> Found:
    """The clips of the shards that ``data.root`` names, and what belongs to them.

    Args:
        photos: They count as clips where a sample has no video.

    Raises:
        DataError: no shard is there, one cannot be read, or is another than its dataset says.
    """
    assert data.root is not None
    listing = listed(data.root)
    looked = index.each(
        listing.shards, lambda shard: archives.contents(shard.file, index), f"{data.root}: looking at shards"
    )
    skipped = dict(listing.left_out)
    samples: dict[str, _Sample] = {}
    videos: dict[str, File] = {}
    held_out: set[str] = set()
    suffixes = (*_VIDEOS, *_PHOTOS) if photos else _VIDEOS
    for shard, contents in zip(listing.shards, looked, strict=True):
        if contents.fault is not None:
            skipped[str(shard.file)] = contents.fault
        skipped |= {f"{shard.name}/{name}": why for name, why in contents.left_out.items()}
        for key, sample in _samples(shard, contents).items():
            name = f"{shard.name}/{key}"
            video = next((sample.parts[s] for s in suffixes if s in sample.parts), None)
            if sample.fault is not None or video is None:
                skipped[name] = sample.fault or _lacking(sample)
                continue
            samples[name], videos[name] = sample, video
            if shard.split == "eval":
                held_out.add(name)
    if not videos:
        raise DataError(f"{data.root}: no sample of {len(listing.shards)} shards has a video (<id>.mp4)")
    said = any(shard.split is not None for shard in listing.shards)
    told = MemberCaptions({name: sample.parts for name, sample in samples.items()}, index)
    companions = _Parts(samples, data, control, told)
    held = frozenset(held_out) if said else None
    return Found(str(data.root), videos, skipped, companions, held, lambda names: told)


_VIDEOS = ("mp4", *sorted(suffix[1:] for suffix in clips.VIDEO_SUFFIXES - {".mp4"}))


_PHOTOS = tuple(sorted(suffix[1:] for suffix in PHOTO_SUFFIXES))


def _lacking(sample: _Sample) -> str:
    """Why a sample without a video is not used."""
    return UNASKED if any(suffix in sample.parts for suffix in _PHOTOS) else "has no video"


def _samples(shard: Shard, contents: Contents) -> dict[str, _Sample]:
    """The samples of a shard by key, without those that are excluded."""
    found: dict[str, _Sample] = {}
    begun: list[int] = []
    last = None
    for member, start in zip(contents.members, contents.starts, strict=True):
        match = _SAMPLE.fullmatch(member.member)
        if match is None or _ABOUT_ITSELF.match(member.member):
            continue
        key, part = match["key"], match["part"].lower()
        if key != last:
            begun.append(start)
            last = key
        sample = found.setdefault(key, _Sample(start))
        if part in sample.parts:
            sample.fault = f"has its part {part} twice"
        sample.parts[part] = member
    for name in contents.left_out:
        if (match := _SAMPLE.fullmatch(name)) is not None and match["key"] in found:
            found[match["key"]].fault = f"its member {name} {contents.left_out[name]}"
    numbers = _numbers(shard, contents, begun)
    return {key: one for key, one in found.items() if numbers[one.start] not in shard.excluded}


def _numbers(shard: Shard, contents: Contents, begun: Sequence[int]) -> dict[int, int]:
    """The number of the sample that begins at an offset.

    Raises:
        DataError: the archive is another one than its dataset was prepared from.
    """
    if shard.offsets is None:
        numbers = {start: number for number, start in enumerate(begun)}
        if shard.count is not None and shard.count != len(begun):
            raise DataError(
                f"{shard.file} holds {len(begun)} samples, and its dataset says {shard.count}: put the shard "
                "back, or prepare the dataset again"
            )
        return numbers
    numbers = {start: number for number, start in enumerate(shard.offsets[:-1])}
    if not numbers.keys() >= set(begun) or (shard.offsets and shard.offsets[-1] != contents.end):
        raise DataError(
            f"{shard.file} is another one than its .tar.idx was made of (samples or the end lie elsewhere): "
            "put the shard back, or prepare the dataset again"
        )
    return numbers


def _caption(member: Member) -> str:
    """What a text or a JSON of a sample says; "" where that is nothing."""
    try:
        content = read_bytes(member, _LARGEST_CAPTION)
    except ValueError as error:
        raise DataError(str(error)) from error
    return of_member(content, member.suffix.lower(), str(member))


class MemberCaptions:
    """The captions of the clips of shards: ``<id>.txt``, or else ``<id>.json``.

    Args:
        parts: Members of every clip, by its name and by what stands behind the first dot of theirs.
    """

    unmatched: Sequence[str] = ()
    """Every member is of a sample."""

    def __init__(self, parts: Mapping[str, Mapping[str, Member]], index: Index) -> None:
        self._parts, self._index = parts, index

    def there(self, name: str) -> Member | None:
        """The member that holds the caption of a clip."""
        parts = self._parts[name]
        return next((parts[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in parts), None)

    def of(self, name: str) -> Caption:
        """The caption of a clip.

        Raises:
            captions.Unusable: there is none, or it cannot be read, is empty or too long.
            DataError: its member is no text, or no JSON with a caption.
        """
        if (said := self.there(name)) is None:
            raise captions.Unusable(f"has no member {name.rpartition('/')[2]}.txt or .json")
        try:
            text = self._index.fact(said, "caption", _caption)
        except OSError as error:
            raise captions.Unusable(f"its caption cannot be read ({error})") from error
        if not text or len(text) > LONGEST:
            what = f"has {len(text):,} characters, more than the {LONGEST:,} of any" if text else "is empty"
            raise captions.Unusable(f"its caption in {said.name} {what}")
        return Caption(text, said.name.partition(".")[2])


class _Parts:
    """What belongs to the clips of shards."""

    def __init__(
        self, samples: dict[str, _Sample], data: Data, control: str | None, told: MemberCaptions
    ) -> None:
        self.controls = ControlMix.read(control).from_files(data)
        self._samples, self._told = samples, told
        self._text = (data.text_folder or "t5_xxl").lower()
        self._encodes = data.text_encoder is not None

    def text(self, name: str) -> tuple[File | None, Caption | None]:
        parts = self._samples[name].parts
        if self._told.there(name) is None or any(self._text + s in parts for s in (*ARRAYS, *PICKLES)):
            return self._part(name, self._text, ARRAYS), None
        if not self._encodes:
            raise Unusable(
                name,
                f"has no member {name.rpartition('/')[2]}.{self._text}{ARRAYS[0]}; its caption needs a text "
                "encoder: give its folder (data.text_encoder)",
            )
        try:
            return None, self._told.of(name)
        except captions.Unusable as error:
            raise Unusable(name, str(error)) from error

    def noise(self, name: str) -> File | None:
        return None

    def control_video(self, name: str, control: str) -> File:
        return self._part(name, control, tuple(f".{suffix}" for suffix in (*_VIDEOS, *_PHOTOS)))

    def _part(self, name: str, kind: str, suffixes: Sequence[str]) -> File:
        parts = self._samples[name].parts
        for suffix in suffixes:
            if (member := parts.get(kind + suffix)) is not None:
                return member
        for suffix in PICKLES:
            if (member := parts.get(kind + suffix)) is not None:
                refuse_pickle(member)
        raise Unusable(name, f"has no member {name.rpartition('/')[2]}.{kind}{suffixes[0]}")
