"""Captions of clips, found where people have them.

In a folder of clips, by the clip's name; the first line that has one says what it is::

    captions/<id>.txt|json, captions.json|jsonl|csv|tsv       the table here or in videos/
    metas/<id>.txt|json
    videos/<id>.txt|json
    metadata.json|jsonl|csv|tsv                               here or in videos/

A table is a mapping of names to captions, a list of records, or rows under a header. It names a clip with or
without suffix and folder, in whatever column or key is called so (``file``, ``file_name``, ``video``,
``path``, ``id``, ...), and its caption likewise (``caption``, ``prompt``, ``text``, ...). The JSON of one
clip may also be that of Cosmos-Predict2.5: captions of several lengths by the model that wrote them, of which
the first is taken, as its own data set does.

Nothing is guessed: what is no text, what one line of these says twice and differently, and a table that
cannot be read are errors that name file and line. Line ends become ``\\n``, and space around a caption goes.
Torch-free.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Container, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from cosmos_distill.data.caption_files import SUFFIXES, TABLE_SUFFIXES, clean, of_file, rows
from cosmos_distill.data.errors import DataError
from cosmos_distill.files import printable

LONGEST = 20_000
"""Characters. An encoder keeps some 2,000 of them; what has more is no caption but some other file."""
_TABLES = ("captions", "metadata")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_SHOWN = 3
_ARRAYS = (".safetensors", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Of a file that is, or might be, an embedding: none is opened here."""


class Caption(NamedTuple):
    """What one clip is told to show."""

    text: str
    place: str
    """The file that says so, relative to the root, with the line where there is one."""


class Unusable(Exception):
    """A clip has no caption that can be used; the message says why."""


class Told(Protocol):
    """Where the captions of clips are known, whatever they lie in."""

    @property
    def unmatched(self) -> Sequence[str]:
        """Names to which captions are given and that no clip has."""

    def of(self, name: str) -> Caption:
        """The caption of a clip. Raises :class:`Unusable` or DataError as :meth:`Captions.of` does."""


class Captions:
    """The captions of a folder of clips.

    Args:
        root: The folder that holds ``videos/``.
        names: Of the clips: their files without suffix, relative to ``videos/``.
        videos: The folder in ``root`` where the clips lie, if it has another name.

    Attributes:
        unmatched: Names in tables that no clip has.

    Raises:
        DataError: a table of captions cannot be read, or is none.
    """

    def __init__(self, root: Path, names: Sequence[str], videos: str = "videos") -> None:
        self._root, self._videos = root, videos
        self._listed: dict[Path, dict[str, Path]] = {}
        self._tables: dict[str, dict[str, list[Caption]]] = {table: {} for table in _TABLES}
        self.unmatched: list[str] = []
        match = _matcher(root, names)
        for path in tables(root):
            found: dict[bool, dict[str, list[Caption]]] = {True: {}, False: {}}
            for row in rows(path):
                if (matched := match(row.name)) is None:
                    self.unmatched.append(row.name)
                    continue
                name, exactly = matched
                line = f", line {row.line}" if row.line else ""
                place = f"{path.relative_to(root).as_posix()}{line}"
                found[exactly].setdefault(name, []).append(Caption(row.text, place))
            for name, captions in (found[False] | found[True]).items():
                self._tables[path.stem].setdefault(name, []).extend(captions)

    def of(self, name: str) -> Caption:
        """The caption of a clip.

        Raises:
            Unusable: there is none, or it is empty or too long.
            DataError: a file cannot be read, or contradicts another one.
        """
        for said in (
            lambda: [*self._own("captions", name), *self._tables["captions"].get(name, [])],
            lambda: self._own("metas", name),
            lambda: self._own(self._videos, name),
            lambda: self._tables["metadata"].get(name, []),
        ):
            if found := said():
                return self._one(name, found)
        raise Unusable(f"has no caption{self._hint(name)}")

    def _one(self, name: str, found: Sequence[Caption]) -> Caption:
        """What several places say with one voice."""
        texts: dict[str, Caption] = {}
        for caption in found:
            if text := clean(caption.text, f"{self._root}: {caption.place}"):
                texts.setdefault(text, caption)
        if not texts:
            raise Unusable(f"its caption in {found[0].place} is empty")
        if len(texts) > 1:
            one, other = list(texts.values())[:2]
            raise DataError(
                f"{self._root}: clip {name} has two captions, {_short(one.text)} in {one.place} and "
                f"{_short(other.text)} in {other.place}: take one of them away"
            )
        ((text, caption),) = texts.items()
        if len(text) > LONGEST:
            raise Unusable(
                f"its caption in {caption.place} has {len(text):,} characters, more than the {LONGEST:,} of "
                "anything that is one"
            )
        return Caption(text, caption.place)

    def _own(self, folder: str, name: str) -> list[Caption]:
        """From the clip's own files in a folder."""
        parent, _, stem = name.rpartition("/")
        place = self._root / folder / parent
        if place not in self._listed:
            self._listed[place] = _files(place)
        found = []
        for suffix in SUFFIXES:
            if (path := self._listed[place].get(_nfc(stem + suffix))) is None:
                continue
            try:
                found.append(Caption(of_file(path), path.relative_to(self._root).as_posix()))
            except DataError:
                if folder == "captions" or suffix != ".json":  # elsewhere it may be of anything
                    raise
        return found

    def _hint(self, name: str) -> str:
        if self.unmatched:
            shown = ", ".join(printable(said) for said in self.unmatched[:_SHOWN])
            more = len(self.unmatched) - _SHOWN
            return f", while captions are given for {shown}{f' and {more} more' if more > 0 else ''}"
        return f" (captions/{name}.txt, metas/{name}.txt, or a line of captions.csv)"


def there(root: Path) -> bool:
    """Whether a folder of clips seems to have captions, without reading any."""
    return any((root / folder).is_dir() for folder in ("captions", "metas")) or bool(tables(root))


def holds(path: Path, names: Container[str]) -> bool:
    """Whether a file beside the clips is a place of captions: of one of these ``names``, or a table."""
    suffix = path.suffix.lower()
    return (suffix in SUFFIXES and path.with_suffix("").as_posix() in names) or (
        path.stem in _TABLES and suffix in TABLE_SUFFIXES
    )


def tables(root: Path) -> list[Path]:
    """Tables of captions in a folder of clips, those that are there."""
    folders = root, root / "videos"
    there = [f / f"{table}{suffix}" for table in _TABLES for f in folders for suffix in TABLE_SUFFIXES]
    return [path for path in there if os.path.lexists(path)]


def negative_prompt(given: str | None) -> Path | str | None:
    """What a negative prompt is: an embedding's file, a text, or nothing.

    Args:
        given: As the user writes it: a text, or the path of a .txt file or of an embedding.

    Raises:
        DataError: it is a file of text that cannot be read, or is empty.
    """
    given = given or ""
    path = Path(given)
    if path.suffix.lower() in _ARRAYS:
        return path
    if path.suffix.lower() == ".txt":
        if not (found := of_file(path)):
            raise DataError(f"the negative prompt {given} is empty: write a prompt into it, or leave it out")
        return found
    return given.strip() or None


def _files(folder: Path) -> dict[str, Path]:
    """Files of a folder that may hold a caption, by name; none if there is no folder."""
    try:
        there = [path for path in folder.iterdir() if path.name[0] != "."]
    except OSError:
        return {}
    return {_nfc(p.stem) + p.suffix.lower(): p for p in sorted(there) if p.suffix.lower() in SUFFIXES}


def _nfc(name: str) -> str:
    """What a Mac wrote spells an accent apart from its letter, and looks the same."""
    return unicodedata.normalize("NFC", name)


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _matcher(root: Path, names: Sequence[str]) -> Callable[[str], tuple[str, bool] | None]:
    """A function from the name in a table to the clip's, and whether its folders are the clip's, too."""
    from cosmos_distill.data.video import VIDEO_SUFFIXES

    known = {_nfc(name): name for name in names}
    alone: dict[str, list[str]] = {}
    for name in names:
        alone.setdefault(_nfc(name).rpartition("/")[2], []).append(name)
    own = {(), ("videos",), (*root.absolute().parts[1:], "videos"), (*root.absolute().parts[1:],)}

    def match(said: str) -> tuple[str, bool] | None:
        parts = [p for p in PurePosixPath(_nfc(said.strip()).replace("\\", "/")).parts if p not in (".", "/")]
        if not parts:
            return None
        suffix = PurePosixPath(parts[-1]).suffix
        stem = parts[-1].removesuffix(suffix) if suffix.lower() in (*VIDEO_SUFFIXES, *_IMAGES) else parts[-1]
        for last in dict.fromkeys((parts[-1], stem)):
            for begin in range(len(parts)):
                name = known.get("/".join([*parts[begin:-1], last]))
                if name is not None:
                    return name, tuple(parts[:begin]) in own
        found = alone.get(stem, [])
        return (found[0], False) if len(found) == 1 else None

    return match
