"""What lies in a folder of clips in the published layout, without looking into a file. Torch-free."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from cosmos_distill.config import Data
from cosmos_distill.data import captions, clips
from cosmos_distill.data.captions import Caption, Captions
from cosmos_distill.data.companions import ARRAYS, Found, Unusable
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.photos import PHOTO_SUFFIXES, UNASKED, asked, named_photo
from cosmos_distill.data.text import PICKLES, refuse_pickle
from cosmos_distill.members import File


def found(data: Data, control: str | None) -> Found:
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
    videos, skipped = videos_in(root / "videos", asked(data))
    companions = _Folders(root, data, control, paired, list(videos))
    return Found(f"{root}/videos", videos, skipped, companions, None, lambda names: Captions(root, names))


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


def videos_in(folder: Path, photos: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """Clips by name, in the order of file names, and why what is left over is not used.

    Args:
        photos: They count as clips, too; of two files of one name a video goes first.
    """
    videos: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    there = _below(folder)
    wanted = clips.VIDEO_SUFFIXES | PHOTO_SUFFIXES if photos else clips.VIDEO_SUFFIXES
    files = [name for name, path in there.items() if path.suffix.lower() in wanted]
    # Of two files of one name the published suffix goes first.
    first: dict[str, str] = {}
    for name in sorted(files, key=lambda n: (named_photo(there[n]), there[n].suffix != ".mp4", n)):
        if (other := first.setdefault(_stem(name), name)) is not name:
            skipped[name] = f"has the name of {other}, which is taken: give it another"
    for name in files:
        if first[_stem(name)] is name:
            videos[_stem(name)] = there[name]
    if not videos:
        alone = any(named_photo(path) for path in there.values())
        raise DataError(
            f"{folder} holds no .mp4 file: put clips there (or other videos), or set data.root to another "
            f"folder{'; photos need a shape of one frame (data.buckets)' if alone else ''}"
        )
    used = set(files)
    others = [name for name in there if name not in used and not captions.holds(Path(name), videos)]
    skipped |= {name: UNASKED if named_photo(there[name]) else "is no video" for name in others}
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
        suffixes = (".mp4", *sorted(clips.VIDEO_SUFFIXES - {".mp4"}), *sorted(PHOTO_SUFFIXES))
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
