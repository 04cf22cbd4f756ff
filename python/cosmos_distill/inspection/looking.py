"""A folder of clips, looked at: what is known of each, and why some cannot be used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cosmos_distill.config import Data
from cosmos_distill.config.data import Detector
from cosmos_distill.data import layout, measuring, shards
from cosmos_distill.data.captions import Captions, Told
from cosmos_distill.data.clips import VIDEO_SUFFIXES
from cosmos_distill.data.cuts import cuts_in, ready
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index, index_of
from cosmos_distill.data.keeping import Known, groups
from cosmos_distill.data.photos import PHOTO_SUFFIXES, named_photo
from cosmos_distill.data.shard_lists import names_shards
from cosmos_distill.errors import Refusal
from cosmos_distill.inspection.pictures import Pictures
from cosmos_distill.members import File, Member, stamp

SHOWN = 5
"""Faults of captions that a page names."""
ENOUGH_PICTURES = 5000
"""Clips whose pictures are kept; of larger folders those that are shown are decoded again."""


@dataclass(frozen=True)
class Looked:
    """A folder as it was found.

    Attributes:
        files: of all clips, by name, in order.
        known: what is known of those that can be decoded.
        bytes: size of every file that could be looked at.
        broken: why others cannot be used, by name.
        alike: names of the clips that look alike, two or more together.
        remarks: sentences of what else was found.
    """

    root: Path
    files: Mapping[str, File]
    known: Mapping[str, Known]
    bytes: Mapping[str, int]
    broken: Mapping[str, str]
    alike: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()


class Files(NamedTuple):
    """What there is to look at.

    Attributes:
        clips: by name.
        broken: why what else lies among them is none, by name.
        captions: where the captions of the clips with some names are known.
    """

    clips: Mapping[str, File]
    broken: dict[str, str]
    captions: Callable[[Sequence[str]], Told]


def files_of(root: Path) -> Files:
    """Clips of a folder, or of shards.

    Raises:
        Refusal: there is no clip.
    """
    if not names_shards(root) and not root.is_dir():
        raise Refusal(f"{root} is no folder: name one that holds videos/, or videos, or shards")
    try:
        if names_shards(root):
            return _in_shards(root)
        if (root / "videos").is_dir():
            return Files(*layout.videos_in(root / "videos", photos=True), lambda names: Captions(root, names))
        broken: dict[str, str] = {}
        found = _named(root, sorted(_videos_below(root, broken)))
        if not found and next(root.rglob("*.tar"), None) is not None:
            return _in_shards(root)
    except DataError as error:
        raise Refusal(str(error)) from error
    if not found:
        suffixes = (" ".join(sorted(them)) for them in (VIDEO_SUFFIXES, PHOTO_SUFFIXES))
        raise Refusal(
            "{} holds no video: name a folder with videos in it ({}), or photos ({})".format(root, *suffixes)
        )
    return Files(found, broken, lambda names: Captions(root, names, "."))


def _in_shards(root: Path) -> Files:
    found = shards.found(Data(source="shards", root=root), None, index_of(root), photos=True)
    return Files(found.videos, found.skipped, found.captions)


def _named(root: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Clips by their path in ``root``, without suffix where that names one only."""
    bare = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    several = {name for name, count in Counter(bare).items() if count > 1}
    return {
        path.relative_to(root).as_posix() if name in several else name: path
        for name, path in zip(bare, paths, strict=True)
    }


def _videos_below(root: Path, broken: dict[str, str]) -> Iterator[Path]:
    """Videos in a folder and those in it, and photos of which there is no video of the name, each folder
    once, however often links lead there. Folders that cannot be read are named in ``broken``."""

    def unreadable(error: OSError) -> None:
        broken[os.path.relpath(error.filename, root)] = f"cannot be read ({error.strerror})"

    seen: set[str] = set()
    for folder, inner, names in os.walk(root, onerror=unreadable, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        there = [Path(folder, name) for name in names if not name.startswith(".")]
        videos = [path for path in there if path.suffix.lower() in VIDEO_SUFFIXES]
        taken = {path.stem for path in videos}
        yield from videos
        yield from (path for path in there if named_photo(path) and path.stem not in taken)


def look(
    root: Path,
    pictures: Pictures,
    progress: Callable[[int, str], Callable[[int], None]],
    detector: Detector | None = None,
) -> Looked:
    """Look at every clip of a folder.

    Args:
        pictures: where strips of frames are kept for the page.
        detector: finds cuts in all frames; None: among those that are looked at.
        progress: told how many clips there are; returns what is told how many more are done.

    Raises:
        Refusal: there is no clip, or what finds cuts is missing.
    """
    try:
        ready(detector)
    except DataError as error:
        raise Refusal(f"--cuts {detector}: {error}") from error
    files, broken, captions = files_of(root)
    index = index_of(root)
    small = len(files) <= ENOUGH_PICTURES
    advance = progress(len(files), f"{root}: looking at clips")
    found = index.each(
        files.items(),
        lambda item: _known(item[1], index, pictures if small else None, detector),
        f"{root}: looking at clips",
        advance,
    )
    results = dict(zip(files, found, strict=True))
    known = {name: result for name, result in results.items() if isinstance(result, Known)}
    broken = {name: str(result) for name, result in results.items() if not isinstance(result, Known)} | broken
    sizes = {name: _size(files[name]) for name in known}
    known, remarks = _captioned(captions, known)
    return Looked(root, files, known, sizes, broken, groups(known, list(known)), remarks)


def _size(file: File) -> int:
    try:
        return file.size if isinstance(file, Member) else stamp(file)[0]
    except OSError:  # it went while others were looked at
        return 0


def _captioned(
    captions_of: Callable[[Sequence[str]], Told], known: Mapping[str, Known]
) -> tuple[dict[str, Known], list[str]]:
    """What is known of clips, with the number of words of their captions; and what is wrong with these."""
    try:
        captions = captions_of(list(known))
    except DataError as error:
        return dict(known), [f"Captions cannot be used: {error}."]
    found, wrong = dict(known), []
    for name, one in known.items():
        try:
            found[name] = replace(one, words=measuring.words(captions, name))
        except DataError as error:
            wrong.append(str(error))
    missing = [name for name, one in found.items() if one.words == 0]
    if len(missing) == len(known):  # a folder without captions
        return dict(known), []
    remarks = [f"Captions: {len(missing)} clips have none."] if missing else []
    remarks += [f"Captions: {error}." for error in wrong[:SHOWN]]
    if captions.unmatched:
        remarks.append(f"Captions are given for {len(captions.unmatched)} names that no clip has.")
    return found, remarks


def _known(file: File, index: Index, pictures: Pictures | None, detector: Detector | None) -> Known | str:
    """What is known of a clip, or why nothing is."""
    try:
        if isinstance(file, Path) and (kind := layout.kind_of(file)) is not None:
            return kind
        info = measuring.info(file, index)
        keep = (lambda frames: None) if pictures is None else partial(pictures.keep, file)
        stats = measuring.stats(file, index, keep)
        return Known(info, stats, cuts=None if detector is None else cuts_in(file, info, detector, index))
    except (DataError, OSError) as error:
        return str(error).removeprefix(str(file)).lstrip(": ")
    except Exception as error:  # whatever a file makes a library raise is a fact of that file
        return f"cannot be decoded ({type(error).__name__}: {error})"
