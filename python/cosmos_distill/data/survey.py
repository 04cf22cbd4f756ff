"""What a folder of clips, or shards, hold: which clips can be used, which are held out, which file is wrong.

Everything is found out at opening, from headers and from the arrays beside the clips, and depends on the
files alone; :mod:`~cosmos_distill.data.index` remembers it. Torch-free: a run looks before any work.

**Skipped**, named and counted, is a clip that cannot be used by itself: no regular file, no video, too short,
without a companion, with another number of frames than its control; and one that the recipe's thresholds
leave out (:class:`cosmos_distill.config.KeepClips`). **An error**, which names every such
file, is what cannot be meant: a pickle, an array of the wrong shape or type, one that cannot be read or
holds NaN.

A folder's videos may lie in folders of their own, and links are followed; the clip ``videos/a/b.mp4`` is
called ``a/b``, and what belongs to it lies likewise. Shards are :mod:`~cosmos_distill.data.shards`.

Held out for evaluation is every fifth clip in the order of file names. Clips that cannot be used count for
that as well: when one is damaged or mended, the others stay where they are. A clip that is added or taken
away shifts those that come after it; a name that comes last shifts none, and an empty file keeps a place.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Protocol

from cosmos_distill.config import Data
from cosmos_distill.config.data import Held
from cosmos_distill.data import captions, clips, companion_checks, measuring
from cosmos_distill.data.captions import Caption, Captions, Told, negative_prompt
from cosmos_distill.data.clips import ClipInfo
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index, index_of
from cosmos_distill.data.keeping import Fault
from cosmos_distill.data.text import PICKLES, refuse_pickle
from cosmos_distill.files import encodable
from cosmos_distill.members import File

log = logging.getLogger(__name__)
Split = Literal["train", "eval"]
HELD_OUT_EVERY = 5
ARRAYS = (".safetensors", ".npz")
"""Suffixes of companions that are arrays; the first is taken where both are there."""
_ROUNDED = 1e-6
"""Frames by which a product of rates may be less than it is."""
SHOWN = 10
"""Files that one message names."""


@dataclass(frozen=True)
class Sample:
    """The files of one clip that can be used."""

    name: str
    video: File
    info: ClipInfo
    text: File | None
    """Its embedding; None: there is a caption."""
    noise: File | None
    controls: Mapping[str, File]
    """Videos of its controls, by control; none of what is computed."""
    caption: Caption | None = None

    @property
    def videos(self) -> tuple[File, ...]:
        """The clip and its controls."""
        return self.video, *self.controls.values()

    def files(self) -> dict[str, File | None]:
        """All of them, by what they are: of several controls each by its name."""
        one = len(self.controls) == 1
        controls = {"control" if one else f"control {name}": file for name, file in self.controls.items()}
        return {"video": self.video, "text": self.text, "noise": self.noise, **controls}


@dataclass(frozen=True)
class Survey:
    """A folder as it was found.

    Attributes:
        place: where the videos lie, for messages.
        names: of all clips, those that cannot be used included, in the order of file names.
        samples: the ones that can be used, by name.
        skipped: why, for everything in ``videos/`` that is not used.
        held_out: names of the clips for evaluation.
        paired: the folder has saved noise.
        left_out: those of the skipped that could be used, but for the thresholds of ``data.keep``.
    """

    root: Path
    place: str
    names: tuple[str, ...]
    samples: Mapping[str, Sample]
    skipped: Mapping[str, str]
    held_out: frozenset[str]
    paired: bool
    index: Index
    left_out: Mapping[str, Fault] = field(default_factory=dict)

    def split(self, split: Split) -> list[str]:
        """Names of the clips of one split, those that cannot be used included."""
        return [n for n in self.names if (n in self.held_out) == (split == "eval")]

    def usable(self, split: Split) -> list[Sample]:
        """The clips of one split that can be used. Raises DataError, with reasons, when there is none."""
        found = [self.samples[name] for name in self.split(split) if name in self.samples]
        if not found:
            raise DataError(
                f"no usable clip for {split} in {self.place} ({len(self.samples)} usable of "
                f"{len(self.names)}; evaluation keeps every {HELD_OUT_EVERY}th and needs at least 2, or a "
                "folder of its own)."
                f"{reasons(self.skipped)}"
            )
        return found

    def hashes(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """SHA-256 of every file of these clips, by clip and by what the file is. Minutes, the first time."""
        chosen = [self.samples[name] for name in names]
        found = self.index.each(chosen, self._hash, f"{self.root}: hashing clips")
        return dict(zip(names, found, strict=True))

    def _hash(self, sample: Sample) -> dict[str, str]:
        found = {what: self.index.sha256(path) for what, path in sample.files().items() if path is not None}
        if sample.caption is not None:
            found["caption"] = hashlib.sha256(sample.caption.text.encode()).hexdigest()
        return found


def reasons(skipped: Mapping[str, str]) -> str:
    """Why clips are not used, a line for each of the first ten."""
    shown = [f"\n  {name}: {reason}" for name, reason in list(skipped.items())[:SHOWN]]
    more = len(skipped) - len(shown)
    return "".join(shown) + (f"\n  and {more} more" if more > 0 else "")


def window_span(data: Data) -> int:
    """Frames of a clip from the first to the last of a window."""
    return (data.frames - 1) * data.stride + 1


def windows_of(info: ClipInfo, data: Data) -> int:
    """Windows that a clip has: one beginning at each of its frames, in the mean, from which on it is long
    enough. 0: it is too short."""
    if data.fps is None:
        return max(0, info.frames - window_span(data) + 1)
    later = (data.frames - 1) * info.rate / data.fps  # than the first frame is the last, in the clip's frames
    return max(0, math.floor(info.frames - later + _ROUNDED))


def shape_of(info: ClipInfo, data: Data) -> Data | None:
    """The shape that a clip is trained in: among those that it is long enough for the longest of those whose
    aspect ratio is nearest to its own. None: it is too short for all."""
    fitting = [shape for shape in data.shapes() if windows_of(info, shape)]

    def apart(shape: Data) -> tuple[float, int, int]:
        ratio = abs(math.log(shape.width * info.height / (shape.height * info.width)))
        return round(ratio, 6), -shape.frames, -shape.height * shape.width

    return min(fitting, key=apart, default=None)


def survey(
    data: Data,
    control: str | None,
    *,
    text_channels: int | None,
    latent_shape: tuple[int, int, int, int] | None,
    held: Held = "some",
) -> Survey:
    """Look at every file of ``data.root`` that a run with this ``control`` reads, whichever split it is in.

    Args:
        text_channels: Width of the prompt embedding that the network takes; None: not compared.
        latent_shape: [C, T, h, w] of a clip, which saved noise has to have; None: not compared.
        held: Which clips are held out; ``some``: every fifth.

    Raises:
        DataError: there is nothing to use, or files are wrong; up to ten are named.
    """
    if data.root is None:
        raise DataError("the folder source needs its folder: set data.root (videos/, t5_xxl/, <control>/)")
    root, paired = data.root, data.saved_noise
    index = index_of(root)
    if data.source == "shards":
        from cosmos_distill.data import shards

        found_there = shards.found(data, control, index)
    else:
        found_there = _in_folder(data, control)
    place, videos, skipped, folders, marked, captioned = found_there
    found = index.each(
        videos.items(),
        lambda item: _probe(item[0], item[1], folders, data, index),
        f"{root}: looking at clips",
    )
    samples, errors = {}, []
    for result in found:
        if isinstance(result, Sample):
            samples[result.name] = result
        elif isinstance(result, Unusable):
            skipped[result.name] = str(result)
        else:
            errors.append(str(result))
    if not errors:
        texts = [sample.text for sample in samples.values() if sample.text is not None]
        if (negative := _negative(data)) is not None:
            texts.append(negative)
        noises = [sample.noise for sample in samples.values() if sample.noise is not None]
        errors += companion_checks.faults(texts, noises, index, data, text_channels, latent_shape)
    if errors:
        more = f"\nand {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DataError("\n".join(errors[:SHOWN]) + more)
    clips_of = {name: (sample.video, sample.info) for name, sample in samples.items()}
    left_out = measuring.left_out(data.keep, clips_of, captioned, index, f"{root}: measuring clips")
    samples = {name: sample for name, sample in samples.items() if name not in left_out}
    skipped |= {name: fault.reason for name, fault in left_out.items()}
    some = _held_out(list(videos), samples) if marked is None else marked
    held_out = {"some": some, "all": frozenset(videos), "none": frozenset[str]()}[held]
    return Survey(root, place, tuple(videos), samples, skipped, held_out, paired, index, left_out)


class Companions(Protocol):
    """What belongs to clips."""

    controls: tuple[str, ...]
    """The controls whose videos are read."""

    def text(self, name: str) -> tuple[File | None, Caption | None]:
        """The embedding of the prompt of the clip ``name``, or else its caption."""

    def noise(self, name: str) -> File | None:
        """The noise that it was drawn from."""

    def control_video(self, name: str, control: str) -> File:
        """One of its controls."""


class Found(NamedTuple):
    """What there is before any of it was looked at.

    Attributes:
        place: where the videos lie.
        videos: by the names of their clips, in order.
        skipped: why, by the name of what is left over.
        companions: what belongs to them; each raises :class:`Unusable` where something is missing.
        held_out: names of the clips that somebody has held out for evaluation; None: nobody.
        captions: where the captions of the clips with some names are known.
    """

    place: str
    videos: Mapping[str, File]
    skipped: dict[str, str]
    companions: Companions
    held_out: frozenset[str] | None
    captions: Callable[[Sequence[str]], Told]


def _in_folder(data: Data, control: str | None) -> Found:
    assert data.root is not None
    root, noise, paired = data.root, data.root / "noise", data.saved_noise
    if not paired and os.path.lexists(noise):
        raise DataError(
            f"{noise} is no folder, or a link that leads nowhere: mend it, or take it away to train without "
            "saved noise"
        )
    if paired and data.buckets is not None:
        raise DataError(f"{root} has saved noise, which only matches one shape: leave data.buckets out")
    if paired and data.fps is not None:
        raise DataError(f"{root} has saved noise, which only matches every frame: leave data.fps out")
    if paired and data.stride != 1:
        raise DataError(f"{root} has saved noise, which only matches every frame: set data.stride to 1")
    videos, skipped = videos_in(root / "videos")
    companions = _Folders(root, data, control, paired, list(videos))
    return Found(f"{root}/videos", videos, skipped, companions, None, lambda names: Captions(root, names))


def _held_out(names: Sequence[str], usable: Mapping[str, Any]) -> frozenset[str]:
    """Every fifth name, or the last of fewer than five. Only where one split would be left without a clip
    that can be used does the other give one up, its last or its first."""
    held = set(names[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or names[-1:])
    good = [name for name in names if name in usable]
    if len(good) < 2:
        return frozenset(held - set(good))
    if held.isdisjoint(good):
        held.add(good[-1])
    elif held.issuperset(good):
        held.remove(good[0])
    return frozenset(held)


def kind_of(path: Path) -> str | None:
    """What is there instead of a regular file; None if it is one. Nothing is opened: a pipe cannot block."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return "is a link that leads nowhere"
        return f"cannot be looked at ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    return "is a named pipe, not a file" if stat.S_ISFIFO(mode) else "is a device or a socket, not a file"


def videos_in(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Clips by name, in the order of file names, and why what is left over is not used."""
    videos: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    there = _below(folder)
    files = [name for name, path in there.items() if path.suffix.lower() in clips.VIDEO_SUFFIXES]
    # Of two files of one name the published suffix goes first.
    first: dict[str, str] = {}
    for name in sorted(files, key=lambda name: (there[name].suffix != ".mp4", name)):
        if (other := first.setdefault(_stem(name), name)) is not name:
            skipped[name] = f"has the name of {other}, which is taken: give it another"
    for name in files:
        if first[_stem(name)] is name:
            videos[_stem(name)] = there[name]
    if not videos:
        raise DataError(
            f"{folder} holds no .mp4 file: put clips there (or other videos), or set data.root to another "
            "folder"
        )
    used = set(files)
    others = [name for name in there if name not in used and not captions.holds(Path(name), videos)]
    skipped |= dict.fromkeys(others, "is no video")
    return videos, skipped


def _stem(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def _below(folder: Path, above: tuple[str, ...] = ()) -> dict[str, Path]:
    """What lies in a folder and in those below it, links followed, in the order of their names relative to
    it. Of a folder only that it is one where it is called like a video, or is empty, or is one of those
    ``above`` it."""
    here = os.path.realpath(folder)
    found: dict[str, Path] = {}
    for path in _listed(folder):
        inner: dict[str, Path] = {}
        if (
            path.suffix.lower() not in clips.VIDEO_SUFFIXES
            and path.is_dir()
            and os.path.realpath(path) not in (*above, here)
        ):
            inner = _below(path, (*above, here))
        found |= {f"{path.name}/{name}": one for name, one in inner.items()} or {path.name: path}
    return dict(sorted(found.items()))


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing if there is no folder. Hidden is what systems leave there."""
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from error


def _negative(data: Data) -> Path | None:
    """The embedding that is given for the unconditional branch; None: nothing or a text is."""
    given = negative_prompt(data.negative_prompt)
    if isinstance(given, Path):
        if (kind := kind_of(given)) is not None:
            raise DataError(
                f"data.negative_prompt {given} {kind}: give the path of an embedding (.safetensors or .npz), "
                "a text, or nothing for zeros"
            )
        return given
    if given is not None and data.text_encoder is None:
        raise DataError(
            f"data.negative_prompt {given[:60]!r} is a text, which nothing here encodes: give the folder of "
            "the text encoder (data.text_encoder), or the path of its embedding (.safetensors or .npz)"
        )
    return None


class Unusable(Exception):
    """Why one clip is skipped."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class _Folders:
    """The companions of clips: every folder is listed once."""

    def __init__(
        self, root: Path, data: Data, control: str | None, paired: bool, names: Sequence[str]
    ) -> None:
        self.controls = ControlMix.read(control).from_files(data, paired)
        self.paired = paired
        self._text = data.text_folder or "t5_xxl"
        self._there: dict[str, dict[str, dict[str, Path]]] = {
            folder: self._by_name(root / folder)
            for folder in (self._text, *["noise"] * paired, *self.controls)
        }
        self._captions: Captions | None = None
        self._advice = ""
        if data.text_encoder is None and captions.there(root):
            self._advice = "; its caption needs a text encoder: give its folder (data.text_encoder)"
        if data.text_encoder is not None and not all(map(self._has_text, names)):
            self._captions = Captions(root, names)

    @staticmethod
    def _by_name(folder: Path) -> dict[str, dict[str, Path]]:
        found: dict[str, dict[str, Path]] = {}
        for name, path in _below(folder).items():
            found.setdefault(_stem(name), {}).setdefault(path.suffix.lower(), path)
        # What a Mac wrote spells an accent apart from its letter, and looks the same.
        for name, paths in list(found.items()):
            found.setdefault(unicodedata.normalize("NFC", name), paths)
        return found

    def _has_text(self, name: str) -> bool:
        there = self._listed(name, self._text)
        return any(suffix in there for suffix in (*ARRAYS, *PICKLES))

    def text(self, name: str) -> tuple[File | None, Caption | None]:
        """The embedding, or else the caption."""
        if self._captions is None or self._has_text(name):
            return self._companion(name, self._text, ARRAYS), None
        try:
            return None, self._captions.of(name)
        except captions.Unusable as error:
            raise Unusable(name, f"has no {self._text}/{name}.safetensors, and {error}") from error

    def noise(self, name: str) -> Path | None:
        return self._companion(name, "noise", ARRAYS) if self.paired else None

    def control_video(self, name: str, control: str) -> Path:
        suffixes = (".mp4", *sorted(clips.VIDEO_SUFFIXES - {".mp4"}))
        return self._companion(name, control, suffixes)

    def _listed(self, name: str, folder: str) -> Mapping[str, Path]:
        listed = self._there[folder]
        return listed.get(name) or listed.get(unicodedata.normalize("NFC", name), {})

    def _companion(self, name: str, folder: str, suffixes: Sequence[str]) -> Path:
        there = self._listed(name, folder)
        for suffix in suffixes:
            if (path := there.get(suffix)) is not None:
                if (kind := kind_of(path)) is not None:
                    raise Unusable(name, f"its {folder}/{path.name} {kind}")
                return path
        for suffix in PICKLES:
            if (path := there.get(suffix)) is not None:
                refuse_pickle(path)
        advice = self._advice if folder == self._text else ""
        raise Unusable(name, f"has no {folder}/{name}{suffixes[0]}{advice}")


def _probe(name: str, video: File, folders: Companions, data: Data, index: Index) -> Sample | Exception:
    """The clip, or why it is none; a returned exception is one clip's, and does not hide those of others."""
    try:
        if isinstance(video, Path) and (kind := kind_of(video)) is not None:
            raise Unusable(name, kind)
        if not encodable(Path(name)):
            raise Unusable(name, "has a name that is not UTF-8: rename it and what belongs to it")
        text, caption = folders.text(name)
        noise = folders.noise(name)
        controls = {control: folders.control_video(name, control) for control in folders.controls}
        info = _info(name, video, index)
        for control, file in controls.items():
            try:
                clips.check_control(info, _info(name, file, index), control)
            except DataError as error:
                raise Unusable(name, str(error)) from error
        shortest = min(data.shapes(), key=window_span)
        span = window_span(shortest)
        if shape_of(info, data) is None and data.fps is not None:
            long = f"{info.duration:.2f} s, shorter than {shortest.frames} frames at {data.fps:g} a second"
            raise Unusable(name, long)
        if shape_of(info, data) is None:
            raise Unusable(name, f"{info.frames} frames, fewer than the {span} of a window")
        if noise is not None and info.frames != span:
            raise Unusable(
                name, f"{info.frames} frames, but its saved noise matches a clip of exactly {span}"
            )
        return Sample(name, video, info, text, noise, controls, caption)
    except (Unusable, DataError) as error:
        return error


def _info(name: str, path: File, index: Index) -> ClipInfo:
    try:
        return measuring.info(path, index)
    except (DataError, OSError) as error:
        raise Unusable(name, str(error)) from error
