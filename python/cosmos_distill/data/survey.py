"""What a folder of clips, or shards, hold: which clips can be used, which are held out, which file is wrong.

Everything is found out at opening, from headers and from the arrays beside the clips, and depends on the
files alone; :mod:`~cosmos_distill.data.index` remembers it. Torch-free: a run looks before any work.

**Skipped**, named and counted, is a clip that cannot be used by itself: no regular file, no video, too short,
without a companion, with another number of frames than its control; one that the recipe's thresholds leave
out (:class:`cosmos_distill.config.KeepClips`); and one whose shots are all shorter than a window, where
windows may not cross cuts (``data.cuts``). **An error**, which names every such file, is what cannot be
meant: a pickle, an array of the wrong shape or type, one that cannot be read or holds NaN.

A folder's videos may lie in folders of their own, and links are followed; the clip ``videos/a/b.mp4`` is
called ``a/b``, and what belongs to it lies likewise. Shards are :mod:`~cosmos_distill.data.shards`.

Held out for evaluation is every fifth clip in the order of file names. Clips that cannot be used count for
that as well: when one is damaged or mended, the others stay where they are. A clip that is added or taken
away shifts those that come after it; a name that comes last shifts none, and an empty file keeps a place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cosmos_distill.config import Data
from cosmos_distill.config.data import Held
from cosmos_distill.data import clips, companion_checks, layout, measuring, photos
from cosmos_distill.data.captions import Caption, negative_prompt
from cosmos_distill.data.clips import ClipInfo
from cosmos_distill.data.companions import Companions, Unusable
from cosmos_distill.data.cuts import cuts_in, ready
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index, index_of
from cosmos_distill.data.keeping import Fault
from cosmos_distill.data.windows import Cut, longest_shot, shape_of, window_span, windows_of
from cosmos_distill.files import encodable
from cosmos_distill.members import File

Split = Literal["train", "eval"]
HELD_OUT_EVERY = 5
CUT_UP = "cut up"
"""Said of a clip whose shots are all too short."""
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
    cuts: tuple[Cut, ...] = ()
    """Where windows may not cross, if that is asked for."""

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
        left_out: those of the skipped that could be used, but for ``data.keep`` and ``data.cuts``.
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

    def long_enough(self, split: Split, data: Data) -> list[Sample]:
        """The clips of one split that have a window of the one shape of ``data``: with buckets, in which all
        have a window of their own, that is not all that can be used. Raises like :meth:`usable`."""
        return [sample for sample in self.usable(split) if windows_of(sample.info, data, sample.cuts)]

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
    ready(data.cuts)
    index = index_of(root)
    if data.source == "shards":
        from cosmos_distill.data import shards

        found_there = shards.found(data, control, index, photos.asked(data))
    else:
        found_there = layout.found(data, control)
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
    left_out = measuring.left_out(
        data.keep, clips_of, captioned, index, f"{root}: measuring clips", data.cuts
    )
    samples = {name: sample for name, sample in samples.items() if name not in left_out}
    if data.cuts is not None:
        looked = index.each(samples.values(), lambda one: _cut(one, data, index), f"{root}: finding cuts")
        left_out |= {name: one for name, one in zip(samples, looked, strict=True) if isinstance(one, Fault)}
        samples = {sample.name: sample for sample in looked if isinstance(sample, Sample)}
    skipped |= {name: fault.reason for name, fault in left_out.items()}
    some = _held_out(list(videos), samples) if marked is None else marked
    held_out = {"some": some, "all": frozenset(videos), "none": frozenset[str]()}[held]
    return Survey(root, place, tuple(videos), samples, skipped, held_out, paired, index, left_out)


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


def _negative(data: Data) -> Path | None:
    """The embedding that is given for the unconditional branch; None: nothing or a text is."""
    given = negative_prompt(data.negative_prompt)
    if isinstance(given, Path):
        if (kind := layout.kind_of(given)) is not None:
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


def _probe(name: str, video: File, folders: Companions, data: Data, index: Index) -> Sample | Exception:
    """The clip, or why it is none; a returned exception is one clip's, and does not hide those of others."""
    try:
        if isinstance(video, Path) and (kind := layout.kind_of(video)) is not None:
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


def _cut(sample: Sample, data: Data, index: Index) -> Sample | Fault:
    """A clip with its cuts, or why none of its shots can be used."""
    assert data.cuts is not None
    try:
        cuts = cuts_in(sample.video, sample.info, data.cuts, index)
    except (DataError, OSError) as error:
        return measuring.damaged(error)
    if shape_of(sample.info, data, cuts) is None:
        shortest = min(data.shapes(), key=window_span)
        window = f"{window_span(shortest)} frames"
        if data.fps is not None:
            window = f"{shortest.frames} frames at {data.fps:g} a second"
        longest = longest_shot(sample.info, cuts)
        return Fault(CUT_UP, f"{CUT_UP}: {len(cuts) + 1} shots of {longest} frames at most, shorter than the "
                             f"{window} of a window")  # fmt: skip
    return replace(sample, cuts=cuts)


def _info(name: str, path: File, index: Index) -> ClipInfo:
    try:
        return measuring.info(path, index)
    except (DataError, OSError) as error:
        raise Unusable(name, str(error)) from error
