"""What has been found out about files, remembered by their size and times.

Reading all clips and embeddings of a large folder takes minutes; asking the file system whether one of them
is another than last time takes seconds. What is remembered lies in a folder of the user's own, never beside
the clips: ``$XDG_CACHE_HOME/cosmos-distill``, ``~/.cache/cosmos-distill``, or one under the system's
temporary folder where neither can be written. It can always be found out again, so that a file there that
is damaged, read-only, deleted, or written by several processes at once costs time and nothing else.

Torch-free: the state of a run is asked for before any work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from cosmos_distill.files import regular
from cosmos_distill.members import File, address, content_hash, place, stamp

T = TypeVar("T")
AnyFile = TypeVar("AnyFile", bound=File)
log = logging.getLogger(__name__)
SETTLED_NS = 2 * 10**9
"""A file changed less than this before it was read is read again next time: a second change could carry the
same times, since file systems count in ticks of up to two seconds."""
THREADS = 8
"""Files read at once, at most."""
_HASH = "sha256"
_PARTS, _LIBRARIES = ("arrays", "data"), ("av", "numpy", "opencv-python-headless", "pillow", "safetensors")
_EVERY = 10.0
"""Seconds between two lines about long reading, after each of which what was found is kept."""


class Index:
    """Facts about files, by place. Safe for several threads.

    Args:
        file: Where they are kept; None keeps them for this process only.
    """

    def __init__(self, file: Path | None) -> None:
        self._file, self._lock, self._new = file, threading.Lock(), False
        self._known = _load(file) if file else {}

    def __reduce__(self) -> tuple[type[Index], tuple[None]]:
        """A copy in another process remembers nothing, and keeps nothing."""
        return Index, (None,)

    def fact(self, file: AnyFile, kind: str, find: Callable[[AnyFile], T]) -> T:
        """``find(file)``, a JSON value, or what it gave while the file had the stamp it has now.

        Errors of ``find`` are passed on and not remembered.
        """
        name = place(file)
        before = stamp(file)
        with self._lock:
            entry = self._known.get(name)
            if entry is not None and tuple(entry["stamp"]) == before and kind in entry:
                found: T = entry[kind]
                return found
        # Not by the time of the content: a camera's clock or a copy sets that to anything.
        settled = before[2] < time.time_ns() - SETTLED_NS
        found = find(file)
        if settled and stamp(file) == before:
            with self._lock:
                entry = self._known.get(name)
                if entry is None or tuple(entry["stamp"]) != before:
                    entry = self._known[name] = {"stamp": list(before)}
                entry[kind] = found
                self._new = True
        return found

    def sha256(self, file: File) -> str:
        """Of a file's content, as :func:`~cosmos_distill.members.content_hash` gives it."""
        return self.fact(file, _HASH, content_hash)

    def each(
        self,
        items: Iterable[T],
        look: Callable[[T], Any],
        title: str,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Any]:
        """``look`` at every item, in several threads; the results are in order. ``advance`` is told how many
        more there are, now and then; an exception of it ends the look.

        What takes long is said every ten seconds, and kept so far, so that an interrupted look goes on from
        there. An exception of ``look`` is passed on when its turn comes.
        """
        items, threads = list(items), min(THREADS, 2 * (os.cpu_count() or 1))
        # Several at a time, as far as all threads have work: most looks end at what is remembered.
        size = max(1, min(32, len(items) // (8 * threads)))
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            found: list[Any] = []
            said = time.monotonic()
            try:
                for results in pool.map(lambda group: [look(item) for item in group], groups):
                    found += results
                    advance(len(results))
                    if time.monotonic() - said > _EVERY:
                        log.warning("%s: %d of %d", title, len(found), len(items))
                        self.save()
                        said = time.monotonic()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self.save()
        return found

    def save(self) -> None:
        """Keep what is new, beside what other processes have kept. A disk that refuses is no error."""
        with self._lock:
            if not self._new or self._file is None:
                return
            self._new = False
            known = _load(self._file)
            for name, entry in self._known.items():
                other = known.get(name)
                known[name] = {**other, **entry} if other and other["stamp"] == entry["stamp"] else entry
            content = json.dumps(known, separators=(",", ":")).encode()
        with suppress(OSError):
            # A name of its own for every writer; the last one to rename wins, and nothing is ever half.
            handle, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(_head(content) + content)
                os.replace(temporary, self._file)
            except BaseException:
                os.unlink(temporary)
                raise


@lru_cache(maxsize=16)
def _index(root: str, cache: str | None) -> Index:
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return Index(Path(cache, f"{name}.index") if cache else None)


def index_of(root: Path | str) -> Index:
    """The index of the files of one folder, or of a place in a store, read once per process. By whatever name
    the folder is reached, relative, through a link or with a slash behind, it is the same."""
    cache = cache_folder()
    return _index(address(root) or os.path.realpath(root), None if cache is None else str(cache))


def cache_folder() -> Path | None:
    """A folder of the user's own for what can always be found out again; None where none can be written."""
    for folder in _candidates():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In a folder that everybody writes, another user could have made it.
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError:
            continue
    return None


def _candidates() -> Iterator[Path]:
    if os.path.isabs(given := os.environ.get("XDG_CACHE_HOME", "")):
        yield Path(given, "cosmos-distill")
    with suppress(RuntimeError):  # no home
        yield Path.home() / ".cache" / "cosmos-distill"
    with suppress(OSError):  # no temporary folder
        yield Path(tempfile.gettempdir(), f"cosmos-distill-{os.getuid()}")


def _head(content: bytes) -> bytes:
    return f"{_reader()} {hashlib.sha256(content).hexdigest()}\n".encode()


@lru_cache(maxsize=1)
def _reader() -> str:
    """Facts hold for the code that found them: :func:`reading`, and the libraries that it calls."""
    from importlib import metadata  # not needed for --help, and slow to import

    digest = hashlib.sha256()
    for path in reading():
        digest.update(path.read_bytes())
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()


def reading() -> list[Path]:
    """This package's own sources by which files beside and among clips are read: on another version of them
    facts are found out again."""
    package = Path(__file__).parents[1]
    return [
        package / "files.py",
        package / "members.py",
        package / "vision" / "transnet.py",
        *sorted(p for part in _PARTS for p in (package / part).glob("*.py")),
    ]


def _load(file: Path) -> dict[str, dict[str, Any]]:
    """What is kept in ``file``; nothing where it cannot be used. Facts of another version are left out,
    hashes stay."""
    try:
        regular(file)
        head, _, content = file.read_bytes().partition(b"\n")
        reader, _, checksum = head.decode().partition(" ")
        if hashlib.sha256(content).hexdigest() != checksum:
            return {}
        known: dict[str, dict[str, Any]] = json.loads(content)
    except (OSError, ValueError):
        return {}
    if reader == _reader():
        return known
    return {name: _hash_only(entry) for name, entry in known.items()}


def _hash_only(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("stamp", _HASH) if key in entry}
