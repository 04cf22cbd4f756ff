"""What files of captions say: one clip's own file, and tables of many clips'. Torch-free."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosmos_distill.data.errors import DataError
from cosmos_distill.files import printable, regular

SUFFIXES = (".txt", ".json")
"""Of the file of one clip."""
TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_FILE_KEYS = (
    "file_name", "filename", "file", "file_path", "filepath", "video", "video_path", "video_file",
    "media_path", "path", "clip", "name", "id", "video_id", "clip_id", "key", "image", "__key__",
)  # fmt: skip
_TEXT_KEYS = ("caption", "captions", "prompt", "text", "description")
_LARGEST = 256 * 2**20
"""Bytes of a table; a clip's own file has kilobytes."""
_LARGEST_FILE = 2**20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def of_file(path: Path) -> str:
    """The caption in the file of one clip, ``.txt`` or ``.json``; "" where that is empty.

    Raises:
        DataError: it cannot be read, is no text, or holds no caption.
    """
    return of_member(_bytes(path, _LARGEST_FILE), path.suffix.lower(), str(path))


def of_member(content: bytes, suffix: str, place: str) -> str:
    """The caption in one clip's member of a shard, or in its file; "" where that is empty.

    Args:
        content: Its bytes.
        suffix: ``.txt`` or ``.json``.
        place: Its name, for messages.

    Raises:
        DataError: it is no text, or no JSON with a caption.
    """
    text = decoded(content, place)
    if suffix == ".txt" or not text.strip():
        return clean(text, place)
    try:
        said = _json(text)
    except ValueError:
        try:  # Predict2.5's own files come without braces, too
            said = _json(f"{{{text}}}")
        except ValueError as error:
            raise DataError(f"{place} is no JSON ({error})") from error
    if (caption := _of_value(said)) is None:
        keys = ", ".join(map(str, list(said)[:5])) if isinstance(said, Mapping) else type(said).__name__
        raise DataError(f"{place} holds no caption under {', '.join(_TEXT_KEYS)}, but {printable(keys)}")
    return clean(caption, place)


def decoded(content: bytes, place: str) -> str:
    """Bytes of a text file as text: UTF-8, or what its byte order mark says.

    Raises:
        DataError: it is something else.
    """
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{place} is not {encoding.upper()}{at}: save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{place} is no text, or UTF-16 without its mark: save it as UTF-8")
    return text


def clean(text: str, place: str) -> str:
    """A caption without space around it, its lines ended by ``\\n``.

    Raises:
        DataError: it holds halves of characters, as a JSON escape can spell them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds {text[error.start]!a}, half of a character: mend it") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _bytes(path: Path, most: int) -> bytes:
    try:
        if (size := regular(path)) > most:
            raise ValueError(f"{path} has {size:,} bytes, too many for captions")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _json(text: str) -> Any:
    """JSON in which no key stands twice with different values. ValueError for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if found.setdefault(key, value) != value:
                raise ValueError(f"{key[:100]!r} stands there twice, with different values")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _of_value(value: Any) -> str | None:
    """The caption that a JSON value holds; None: none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # several captions of one clip: which one is meant is not for us to say
        return _of_value(value[0]) if len(value) == 1 else None
    if not isinstance(value, Mapping):
        return None
    if (key := _key(value, _TEXT_KEYS)) is not None:
        return _of_value(value[key])
    first = next(iter(value.values()), None)  # {model: {"long": caption, "short": caption}}
    if isinstance(first, Mapping) and first and all(isinstance(text, str) for text in first.values()):
        return str(next(iter(first.values())))
    return None


def _key(record: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the ``wanted`` names that a record has, as it writes it."""
    there = {str(key).strip().lower(): key for key in record}
    return next((there[name] for name in wanted if name in there), None)


class Row(NamedTuple):
    """What a table says of one clip."""

    name: str
    text: str
    line: int
    """In the file; 0: it has none."""


def rows(path: Path) -> list[Row]:
    """What a table says. One that is called metadata and holds no captions is somebody else's, and says
    nothing.

    Raises:
        DataError: it cannot be read, or is no table of captions.
    """
    reader = {".json": _of_json, ".jsonl": _of_jsonl}.get(path.suffix, _of_csv)
    try:
        return reader(decoded(_bytes(path, _LARGEST), str(path)))
    except (ValueError, DataError) as error:
        if path.stem == "metadata":
            return []
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as captions: {error}") from error


def _of_json(text: str) -> list[Row]:
    said = _json(text)
    if isinstance(said, Mapping):
        lists = [value for value in said.values() if isinstance(value, list) and value]
        if len(lists) == 1 and all(isinstance(record, Mapping) for record in lists[0]):
            said = lists[0]  # {"annotations": [...], "version": ...}
    if isinstance(said, Mapping):
        return [Row(key, _text(value, repr(key[:100])), 0) for key, value in said.items()]
    if not isinstance(said, list):
        raise ValueError(
            f"it is a {type(said).__name__}: give a mapping of names to captions, or a list of records"
        )
    return [_record(record, f"record {number}", 0) for number, record in enumerate(said)]


def _of_jsonl(text: str) -> list[Row]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = _json(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON ({error})") from error
            found.append(_record(record, f"line {number}", number))
    return found


def _record(record: Any, where: str, line: int) -> Row:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not a record with keys")
    name, caption = _key(record, _FILE_KEYS), _key(record, _TEXT_KEYS)
    if name is None or caption is None:
        wanted = f"names a clip ({', '.join(_FILE_KEYS[:5])}, ...)" if name is None else "holds a caption"
        raise ValueError(
            f"{where} has no key that {wanted}: it has {', '.join(map(str, record))[:100] or 'none'}"
        )
    return Row(str(record[name]), _text(record[caption], f"{where}: {caption}"), line)


def _text(value: Any, where: str) -> str:
    """The one caption that a value is; null is an empty one."""
    found = "" if value is None else _of_value(value)
    if found is None:
        raise ValueError(f"{where} is no caption, or several: give one text for each clip")
    return found


def _of_csv(text: str) -> list[Row]:
    """Rows under a header, separated by commas, tabs or semicolons; without one, a name and a caption."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator, header = ",", ["name", "caption"]
    for one in (",", "\t", ";"):
        cells = next(csv.reader([first], delimiter=one), [])
        if _key(cells, _FILE_KEYS) is not None and _key(cells, _TEXT_KEYS) is not None:
            separator, header, first = one, cells, ""
            break
    name, caption = (header.index(_key(header, keys) or "") for keys in (_FILE_KEYS, _TEXT_KEYS))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found: list[Row] = []
    begun, line = bool(first), 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if begun and len(cells) != len(header):
                    raise ValueError(_uneven(line, cells, header, separator, first))
                if begun:
                    found.append(Row(cells[name], cells[caption], line))
                begun = True
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from error
    return found


def _uneven(line: int, cells: Sequence[str], header: Sequence[str], separator: str, first: str) -> str:
    if first:
        return (
            f"its first line {first[:100]!r} names no column of clips ({', '.join(_FILE_KEYS[:5])}, ...) and "
            f"none of captions ({', '.join(_TEXT_KEYS)}), and line {line} is no name and a caption"
        )
    return (
        f"line {line} has {len(cells)} cells under a header of {len(header)}: put a caption that holds "
        f"{separator!r} or a line end into quotes"
    )
