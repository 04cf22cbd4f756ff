"""What a stage was made from, what it left behind, and whether it may be used again.

A manifest is written when a stage starts and again, atomically, when it has finished: a stage whose
manifest does not say ``complete`` is resumed, and so is one whose manifest is lost or damaged. Inputs (by
sha256), configuration, seed and :data:`RESULTS` decide whether what lies in the folder belongs to the run
asked for. The package's version and a hash of the sources are recorded for the record only, so that a new
release, or a comment that was mended, does not throw away a week of training; what a newer release made is
refused.

Torch-free: the command line reads manifests to show the state of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cosmos_distill
from cosmos_distill.config import Data, MethodConfig, Recipe, Stage, Trainer
from cosmos_distill.config.controls import weights_of
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.config.stages import KINDS
from cosmos_distill.errors import Refusal
from cosmos_distill.families import NetworkConfig, described
from cosmos_distill.families import read as read_network
from cosmos_distill.files import finite, inside, read_json, regular, sha256, to_json
from cosmos_distill.ranges import Effect, effects
from cosmos_distill.storage import publish_json

MANIFEST = "manifest.json"
RECORD = "clips.json"
"""In a stage's folder: the hashes of the files that it was made from, by clip."""
RESULTS = 1
"""Version of what stages compute. It is raised when the same configuration, inputs and seed give other
numbers than before, or files that a stage cannot go on from. A release that changes neither leaves it alone,
and goes on with the runs of the one before. Manifests of 0.1.0 do not have it and count as the first."""

CHECKSUM = "checksum"
"""Key of a file of ours under which :func:`checksum` of everything else in it stands."""

FILES = ("clips", "tokenizer", "negative_prompt", "text_encoder", OUT_OF_DOMAIN)
"""Inputs that are files of the user's; :mod:`cosmos_distill.run.inputs` compares them."""


def _require_inside(path: str) -> None:
    if not inside(path):
        raise ValueError(f"{path!r} is not a path inside of the run folder")


@dataclass(frozen=True)
class File:
    """A file handed from one stage to the next: path relative to the run folder, and its sha256."""

    path: str
    sha256: str

    def __post_init__(self) -> None:
        _require_inside(self.path)

    @classmethod
    def of(cls, path: Path, out: Path) -> File:
        """Describe ``path``, which lies inside the run folder ``out``."""
        return cls(path.relative_to(out).as_posix(), sha256(path))


@dataclass(frozen=True)
class Pairs:
    """Output of Generate: a folder of shards, with one hash over all of their hashes."""

    folder: str
    count: int
    sha256: str

    def __post_init__(self) -> None:
        _require_inside(self.folder)


@dataclass(frozen=True)
class Shards:
    """Output of Encode: a folder of encoded clips, with one hash over those of its files."""

    folder: str
    clips: int
    sha256: str

    def __post_init__(self) -> None:
        _require_inside(self.folder)


@dataclass(frozen=True)
class Student:
    """Output of Train: the weights to use from here on (the EMA where one is kept)."""

    weights: File
    steps: int


@dataclass(frozen=True)
class Scores:
    """Output of Evaluate: a JSON file of scores and the pictures that go with it."""

    scores: File
    grid: File


@dataclass(frozen=True)
class ExportedFile:
    """Output of Export: one self-describing safetensors file, or a file or folder in the format of others."""

    student: File
    """That file; of a folder its description."""
    parts: tuple[File, ...] = ()
    """What belongs to it besides."""


Output = Pairs | Shards | Student | Scores | ExportedFile
_OUTPUTS: dict[str, type[Any]] = {
    "Pairs": Pairs,
    "Shards": Shards,
    "Student": Student,
    "Scores": Scores,
    "Exported": ExportedFile,
}
"""By the name that manifests have for them."""


@dataclass(frozen=True)
class Manifest:
    """One stage's record; ``outputs`` is None until the stage is complete."""

    stage: str
    configuration: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    version: str
    """Of the package. Recorded; compared only to refuse what a newer one made."""
    results: int = 1
    """:data:`RESULTS` of the package that made this."""
    sources: str = ""
    """sha256 over the package's Python files; recorded, not compared."""
    seconds: float = 0.0
    """Over all attempts that ended in an orderly way."""
    attempts: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    """Recorded, not compared: clips skipped and why, windows held out, ..."""
    outputs: Output | None = None

    @property
    def complete(self) -> bool:
        return self.outputs is not None

    def mismatch(self, other: Manifest) -> str | None:
        """The first field by which ``other`` asks for something else than this one holds, in words. Files of
        the user's are left out, and a field that was not known then stood at its default."""
        if _newer(self.version, other.version):
            return f"code version: made by {self.version}, this is {other.version}"
        if self.results != other.results:
            return f"code version: made by {self.version}, and {other.version} computes other results"
        mine, theirs = self._compared(), other._compared()
        mine = {key: value for key, value in _defaults(other.configuration).items() if key in theirs} | mine
        for key in dict.fromkeys([*theirs, *mine]):
            if mine.get(key) != theirs.get(key):
                return f"{key}: made with {mine.get(key)!r}, now asked for {theirs.get(key)!r}"
        return None

    def _compared(self) -> dict[str, Any]:
        inputs = {f"input {k}": v for k, v in self.inputs.items() if k not in FILES}
        said = dict(_flatten(_with_sizes(_without_places(self.configuration))))
        frames = said.get("stage.condition_frames")
        if isinstance(frames, int):  # of pairs of earlier versions, which were given as many each
            said["stage.condition_frames"] = [frames]
        return said | inputs | {"seed": self.seed}

    def write(self, folder: Path) -> None:
        """Publish in ``folder``; an existing manifest is replaced in one step."""
        document = plain(self)
        if self.outputs is not None:
            document["outputs"] = {"type": _name(self.outputs), **plain(self.outputs)}
        document[CHECKSUM] = checksum(document)
        publish_json(folder / MANIFEST, document, indent=2)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in ``folder``, or None where there is none, or only a damaged one.

        Of a manifest that a newer version wrote there is at least the version, which tells it from every one
        that is asked for (see :meth:`mismatch`).

        Raises:
            Refusal: the file is there and cannot be opened.
        """
        path = folder / MANIFEST
        try:
            regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise Refusal(f"{path} cannot be read ({error}): mend that, or delete it") from error
        try:
            document = finite(read_json(path))
        except OSError as error:
            raise Refusal(f"{path} cannot be read ({error.strerror}): mend that, or delete it") from error
        except ValueError:
            return None
        if not isinstance(document, dict):
            return None
        version, said = str(document.get("version")), document.pop(CHECKSUM, None)
        ours = "version" not in document or not _newer(version, cosmos_distill.__version__)
        if ours and said not in (None, checksum(document)):
            return None
        try:
            outputs = document.pop("outputs", None)
            return cls(**document, outputs=None if outputs is None else _output(outputs))
        except (ValueError, TypeError, KeyError, AttributeError):
            if ours:
                return None
            assert isinstance(version, str)
            return cls(stage=folder.name, configuration={}, inputs={}, seed=0, version=version)


def _newer(version: str, than: str) -> bool:
    """Whether a release comes after another; one whose number cannot be read counts as newer."""
    if version == than:
        return False
    found = [re.fullmatch(r"\d+(?:\.\d+)*", text) for text in (version, than)]
    first, second = (None if one is None else [int(n) for n in one[0].split(".")] for one in found)
    return first is None or second is None or first > second


def results(recipe: Recipe) -> int:
    """:data:`RESULTS` of what ``recipe`` computes: one more where ``vis`` blurs clips by its filters, since
    the bilateral one is a kernel of our own. It differs from OpenCV's by a level, in a value of ten
    thousand."""
    return RESULTS + ("vis" in weights_of(recipe.control) and recipe.data.vis_thumbnail is None)


def configuration(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Everything in ``recipe`` that has an effect on what ``stage`` computes, as its fields say
    (:func:`cosmos_distill.ranges.effects`).

    Left out: paths of the teacher, the clips, the negative prompt and the tokenizer (their hashes are
    inputs), the parallel layout and the micro-batch (they never change the result) and bookkeeping such as
    ``save_every``. The seed has a place of its own in the manifest.
    """
    named = effects(Recipe, vars(recipe))
    parts = [name for name, effect in named.items() if effect == "result" and name not in ("stages", "seed")]
    return {"stage": _effective(stage), **{name: _effective(getattr(recipe, name)) for name in parts}}


def _without_places(document: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the places of files, which those of earlier versions hold."""
    data = document.get("data", {})
    places = [name for name, effect in effects(Data, data).items() if effect == "place"]
    return document | {"data": {key: value for key, value in data.items() if key not in places}}


def _defaults(document: dict[str, Any]) -> dict[str, Any]:
    """What the fields of a configuration's parts stand at where nothing is said, by their paths. A field that
    is new does by default what earlier versions did."""
    stage = document.get("stage", {})
    parts: dict[str, type | None] = {
        "data": Data,
        "stage": next((kind for kind in KINDS if kind.__name__ == stage.get("type")), None),
        "stage.method": _below(MethodConfig).get(stage.get("method", {}).get("type")),
        "stage.trainer": Trainer if "trainer" in stage else None,
    }
    found: dict[str, Any] = {}
    for path, kind in parts.items():
        for of in () if kind is None else dataclasses.fields(kind):
            made = of.default_factory
            value = of.default if made is dataclasses.MISSING else made()
            if value is not dataclasses.MISSING:
                found |= dict(_flatten({f"{path}.{of.name}": _effective(value)}))
    return found


def _below(kind: type) -> dict[str, type]:
    """The classes derived from one, by name."""
    direct: list[type] = kind.__subclasses__()
    return {k: v for one in direct for k, v in {one.__name__: one, **_below(one)}.items()}


def _with_sizes(document: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the sizes of its network, of which those of earlier versions hold the preset's
    name."""
    said = document.get("network")
    try:
        return document | {"network": described(read_network(said))}
    except ValueError:  # not known here any more: compared as it stands
        return document | {"network": said if isinstance(said, dict) else {"family": said}}


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and paths as what JSON knows; a subclassed part names its type."""
    return _plain(value, lambda effect: True)


def _effective(value: Any) -> Any:
    """:func:`plain` without what changes no result."""
    return _plain(value, lambda effect: effect in ("result", "length"))


def _plain(value: Any, keep: Callable[[Effect], bool]) -> Any:
    if isinstance(value, NetworkConfig):
        return described(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {"type": type(value).__name__} if isinstance(value, Stage | MethodConfig) else {}
        kept = [name for name, effect in effects(type(value), vars(value)).items() if keep(effect)]
        return named | {name: _plain(getattr(value, name), keep) for name in kept}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, keep) for item in value]
    if isinstance(value, Path):
        return str(value)
    return finite(value)


def sha256_of_listing(entries: Iterator[str] | list[str]) -> str:
    """One hash over an ordered list of lines."""
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


@lru_cache(maxsize=1)
def sources_sha256() -> str:
    """sha256 over the Python sources of this package."""
    root = Path(cosmos_distill.__file__).parent
    return sha256_of_listing(
        [f"{p.relative_to(root).as_posix()} {sha256(p)}" for p in sorted(root.rglob("*.py"))]
    )


def checksum(document: Mapping[str, Any]) -> str:
    """Of a manifest or record, without its checksum: a changed byte in it must not be taken for another
    configuration, or for another clip."""
    return hashlib.sha256(to_json(document, sort_keys=True).encode()).hexdigest()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(output: Output) -> str:
    return next(name for name, kind in _OUTPUTS.items() if kind is type(output))


def _part(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_part, value))
    return File(**value) if isinstance(value, dict) else value


def _output(document: dict[str, Any]) -> Output:
    cls = _OUTPUTS[document.pop("type")]
    parts = {k: _part(v) for k, v in document.items()}
    result: Output = cls(**parts)
    return result
