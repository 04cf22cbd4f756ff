"""Which shards a root names: a folder or a place in a store, a pattern, or a dataset that Megatron-Energon
has prepared.

Energon keeps beside the shards a folder ``.nv-meta``: ``.info.json`` or, of older versions, ``.info.yaml``
with the number of samples of every shard; ``split.yaml`` or ``split.json`` with the shards of each split and
what is excluded, a shard or ``shard/number of a sample``; and beside each shard ``<shard>.tar.idx``, the byte
offsets of its samples and of its end as unsigned 64-bit little-endian integers. A dataset may also name
classes and a program of its own for its samples: none of that is imported or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cosmos_distill.data.archives import SUFFIX
from cosmos_distill.data.errors import DataError
from cosmos_distill.files import inside
from cosmos_distill.members import Url, address, read_bytes, size_of, store_of

ENERGON = ".nv-meta"
_LARGEST = 256 * 2**20
"""Bytes of a file about shards."""
_MOST = 10**6
"""Shards that a pattern may name."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_PATTERN = re.compile(r"[{*?\[]")
_HELD_OUT = ("val", "valid", "validation", "eval", "test")
"""What splits for evaluation are called; the first that has shards is taken."""
Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Shard:
    """One archive, and what is said of it."""

    name: str
    """Relative to what all have in common, without suffix: the first part of its clips' names."""
    file: Path | Url
    split: Split | None = None
    """None: nobody has said; clips of it are held out one by one."""
    count: int | None = None
    """Samples that it should have."""
    excluded: frozenset[int] = frozenset()
    """Samples to leave out, by number."""
    offsets: tuple[int, ...] | None = None
    """Where Energon's index says that its samples begin, and the last one ends."""


@dataclass(frozen=True)
class Listing:
    """The shards of a root, in order; and why others are not used, by name."""

    shards: tuple[Shard, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def listed(root: Path) -> Listing:
    """The shards that ``root`` names.

    Raises:
        DataError: there are none, or what lies beside them cannot be read.
    """
    place = Place.of(root)
    if place.is_folder():
        if (meta := place.folder(ENERGON)) is not None:
            return _energon(place, meta)
        files = place.below()
        if not files:
            raise DataError(
                f"{place} holds no {SUFFIX} file: set data.root to the folder of the shards, or to a pattern "
                "like DIR/{000..099}.tar"
            )
        return Listing(tuple(Shard(name.removesuffix(SUFFIX), place.at(name)) for name in files))
    return Listing(tuple(_matching(str(place))))


def is_pattern(root: Path) -> bool:
    """Whether a root stands for several shards by braces or wildcards."""
    return _PATTERN.search(str(root)) is not None


def names_shards(root: Path) -> bool:
    """Whether a root can only mean shards: an address, a pattern, or an archive."""
    return address(root) is not None or is_pattern(root) or root.suffix == SUFFIX


class Place:
    """A folder on this machine, or in a store."""

    def __init__(self, text: str, system: Any, path: str) -> None:
        self._text, self._system, self._path = text, system, path

    @classmethod
    def of(cls, root: Path | str) -> Place:
        if (url := address(root)) is None:
            return cls(str(root), None, "")
        with _said(url):
            system, path = store_of(url)
        return cls(url.rstrip("/"), system, path)

    def __str__(self) -> str:
        return self._text

    def is_folder(self) -> bool:
        if self._system is None:
            return Path(self._text).is_dir()
        with _said(self._text):
            return bool(self._system.isdir(self._path))

    def at(self, name: str) -> Path | Url:
        return Path(self._text, name) if self._system is None else Url(f"{self._text}/{name}")

    def folder(self, name: str) -> Place | None:
        """The folder ``name`` in this one; None where there is none."""
        inner = Place.of(f"{self._text}/{name}")
        return inner if inner.is_folder() else None

    def has(self, name: str) -> bool:
        if self._system is None:
            return Path(self._text, name).is_file()
        with _said(self._text):
            return bool(self._system.isfile(f"{self._path.rstrip('/')}/{name}"))

    def size(self, name: str) -> int:
        """Bytes of a file. DataError where there is none."""
        with _said(f"{self._text}/{name}"):
            return size_of(self.at(name))

    def read(self, name: str) -> bytes:
        """All of a small file. DataError where there is none."""
        with _said(f"{self._text}/{name}"):
            return read_bytes(self.at(name), _LARGEST)

    def json(self, name: str) -> Any:
        """A file of JSON. DataError where there is none, or another."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._text}/{name} is no JSON ({error})") from error

    def below(self) -> list[str]:
        """Shards in this folder and in those below it, sorted, by their names relative to it. Hidden ones
        are not."""
        if self._system is None:
            found = [p.relative_to(self._text).as_posix() for p in Path(self._text).rglob(f"*{SUFFIX}")]
        else:
            with _said(self._text):
                begin = self._path.rstrip("/") + "/"
                found = [str(p) for p in self._system.find(self._path)]
            found = [p.split(begin, 1)[-1] for p in found if p.endswith(SUFFIX)]
        return sorted(n for n in found if not any(part.startswith(".") for part in PurePosixPath(n).parts))


@contextmanager
def _said(place: str) -> Iterator[None]:
    """Turn what a disk or a store raises into a DataError."""
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        raise DataError(text if place in text else f"{place} cannot be read ({text})") from error


def expanded(pattern: str) -> Iterator[str]:
    """What braces stand for: ``{a,b}`` and ``{000..123}``, one after the other.

    Raises:
        DataError: more than a million.
    """
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        parts += [[pattern[end : match.start()]], _alternatives(match[1])]
        end = match.end()
    parts.append([pattern[end:]])
    total = 1
    for part in parts:
        total *= len(part)
    if total > _MOST:
        raise DataError(f"{pattern} stands for {total:,} shards, more than {_MOST:,}")
    yield from ("".join(words) for words in product(*parts))


def _alternatives(inner: str) -> list[str]:
    if (numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner)) is None:
        return inner.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < _MOST:
        raise DataError(f"{{{inner}}} is no range of shards: give the first and the last, like {{000..123}}")
    width = len(numbers[1]) if numbers[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _matching(pattern: str) -> Iterator[Shard]:
    """The shards of a pattern, or of the name of one."""
    files: list[Path | Url] = []
    for one in expanded(pattern):
        files += _globbed(one) if _PATTERN.search(one) else [_one(one)]
    if not files:
        raise DataError(f"{pattern} matches no shard: give a folder, one {SUFFIX} file, or another pattern")
    if len(set(map(str, files))) < len(files):
        raise DataError(f"{pattern} names a shard twice")
    texts = [str(file) for file in files]
    shared = _folder_of_all(texts)
    for text, file in sorted(zip(texts, files, strict=True)):
        yield Shard(text[len(shared) :].removesuffix(SUFFIX), file)


def _one(text: str) -> Path | Url:
    url = address(text)
    if url is None and not Path(text).exists():
        raise DataError(f"{text}: no such shard, folder or pattern: set data.root to where the shards lie")
    return Path(text) if url is None else Url(url)


def _globbed(pattern: str) -> list[Path | Url]:
    if (url := address(pattern)) is not None:
        with _said(url):
            system, path = store_of(url)
            begin = url[: len(url) - len(path)] if url.endswith(path) else url.split("://")[0] + "://"
            return [Url(f"{begin}{found}") for found in sorted(map(str, system.glob(path)))]
    whole = Path(pattern)
    fixed = Path(whole.anchor)
    parts = list(whole.parts[1:] if whole.anchor else whole.parts)
    while parts and not _PATTERN.search(parts[0]):
        fixed /= parts.pop(0)
    return [*sorted(found for found in fixed.glob("/".join(parts)) if found.is_file())]


def _folder_of_all(texts: list[str]) -> str:
    """What all begin with, up to the last slash of it."""
    first, last = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, size) + 1]


def _energon(root: Place, meta: Place) -> Listing:
    about, lists = (".info.json", ".info.yaml"), ("split.yaml", "split.json")
    counts = _mapping(meta, "shard_counts", _document(meta, about), about)
    said = _document(meta, lists)
    splits = _mapping(meta, "split_parts", said, lists)
    excluded: set[str] = set()
    numbers: dict[str, set[int]] = {}  # of samples, by shard
    for one in (one for text in said.get("exclude") or [] for one in expanded(str(text))):
        excluded.add(one)
        shard, _, number = one.rpartition("/")
        if number.isdecimal():
            numbers.setdefault(shard, set()).add(int(number))
    of: dict[str, Split] = {}
    held_out = next((name for name in _HELD_OUT if splits.get(name)), None)
    for split, name in (("eval", held_out), ("train", "train")):
        for text in (splits.get(name) or []) if name is not None else []:
            for shard in expanded(str(text)):
                of.setdefault(shard, "eval" if split == "eval" else "train")
    if not of:
        raise DataError(f"{meta}: its splits hold no shard: there is {', '.join(splits) or 'none'}")
    shards, left_out = [], {}
    for name in sorted(of):
        if not inside(name):
            raise DataError(f"{meta}: {name!r} is no path inside of {root}")
        if name in excluded:
            left_out[name] = "excluded by split.yaml"
        elif not root.has(name):
            raise DataError(
                f"{root}: {name} is named by {ENERGON} and is not there: put it back, or prepare again"
            )
        else:
            shards.append(
                Shard(
                    name.removesuffix(SUFFIX),
                    root.at(name),
                    of[name] if held_out else None,
                    _number(counts.get(name), meta, name),
                    frozenset(numbers.get(name, ())),
                    _offsets(root, name),
                )
            )
    left_out |= {name: "is in no split that is used" for name in counts if name not in of}
    return Listing(tuple(shards), left_out)


def _number(value: Any, meta: Place, name: str) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise DataError(f"{meta}: {name} has {value!r} samples, which is no number of them")
    return value


def _offsets(root: Place, name: str) -> tuple[int, ...] | None:
    index = f"{name.removesuffix(SUFFIX)}{SUFFIX}.idx"
    if not root.has(index):
        return None
    content = root.read(index)
    if len(content) % 8:
        raise DataError(f"{root}/{index} is damaged ({len(content)} bytes): prepare the dataset again")
    return tuple(int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8))


def _mapping(meta: Place, key: str, said: Any, files: Sequence[str]) -> dict[str, Any]:
    """What a document says under a key; ``files`` are the names that it may have."""
    found = said.get(key) if isinstance(said, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{meta}: {' or '.join(files)} has no {key}: prepare the dataset again")
    return found


def _document(meta: Place, files: Sequence[str]) -> Any:
    """What the first of these files says that is there, JSON or YAML by its suffix."""
    for name in files:
        if meta.has(name):
            try:
                content = meta.read(name)
                return json.loads(content) if name.endswith(".json") else _yaml(content)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{meta}/{name} cannot be read ({error}): prepare the dataset again"
                ) from error
    raise DataError(f"{meta} lacks {' and '.join(files)}: prepare the dataset again")


def _yaml(content: bytes) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise DataError(
            "datasets of Megatron-Energon need PyYAML: pip install 'cosmos-distill[shards]'"
        ) from error
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
