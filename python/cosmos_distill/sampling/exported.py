"""What an exported file says of itself. None of the paths in it is ever opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cosmos_distill.arrays.named import metadata
from cosmos_distill.config import Control, Data, Evaluations, FewStep, Guidance
from cosmos_distill.config.controls import weights_of
from cosmos_distill.config.numbers import Exported as ExportPrecision
from cosmos_distill.diffusion import Schedule, schedule_from_dict
from cosmos_distill.errors import Refusal
from cosmos_distill.families import read as read_network
from cosmos_distill.families import title
from cosmos_distill.files import inside, read_json, regular, sha256
from cosmos_distill.members import not_here
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.ranges import Checked, fits, hints, places
from cosmos_distill.tokenizers import find, fingerprint

if TYPE_CHECKING:
    from cosmos_distill.sampling.options import SampleOptions

T = TypeVar("T")
FORMAT = 1
"""Of exported files."""
DESCRIPTION = "cosmos_distill.json"
"""In a pipeline folder."""
TORCH = (".pt", ".pth")
OF_TRAINING = ("keep", "buckets")
"""Which clips were trained on and in which shapes: no matter of sampling, whose clips have one."""
_LEFT_OUT = (*places(Data), *OF_TRAINING)
"""With paths, of which none is opened."""


@dataclass(frozen=True)
class ManySteps(Checked):
    """The sampler of a teacher."""

    steps: Evaluations
    guidance: Guidance


@dataclass(frozen=True)
class Exported:
    """What an exported file says of itself, without its paths."""

    network: DiTConfig
    control: Control | None
    data: Data
    schedule: Schedule
    sampler: FewStep | ManySteps
    precision: ExportPrecision
    tokenizer_sha256: Mapping[str, str]
    """Of each file of its tokenizer; empty where that has none, or where an earlier version wrote this."""
    negative_prompt_sha256: str | None
    """Of the embedding of its negative prompt; empty where it had one whose checksum is not known."""
    negative_prompt: str | None = None
    """Its text, where it was one that a text encoder encoded."""
    text_encoder_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each file of its text encoder; empty where it was not known."""
    files_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of the files of its weights, where they are in the formats of others; ours have it inside."""


def beside(path: Path) -> Path:
    """The file that says of an export in the formats of others what ours has in its header: beside the
    official file, in the pipeline folder."""
    return path / DESCRIPTION if path.is_dir() else path.with_suffix(".json")


def _described(path: Path) -> Mapping[str, Any]:
    if not path.is_dir() and path.suffix not in TORCH:
        return metadata(path)
    place = beside(path)
    if not place.is_file():
        if not path.exists():
            raise FileNotFoundError(path)
        lacks = f"{place.name}, in which an export says what it is, is missing"
        raise ValueError(f"it is a folder, and {lacks}" if path.is_dir() else lacks)
    regular(place)
    said = read_json(place)
    if not isinstance(said, dict):
        raise ValueError(f"{place} holds no JSON object")
    return said


def files(path: Path, exported: Exported) -> tuple[Path, ...]:
    """The files or folders of the network's weights.

    Raises:
        Refusal: they are not those that the export was written with.
    """
    names = exported.network.family.names
    found: tuple[Path, ...] = (path,)
    if path.is_dir() and names is not None:
        found = names.files(path, exported.control) or (path / "transformer",)
    if not exported.files_sha256:
        return found
    root = path if path.is_dir() else path.parent
    parts = [file for place in found for file in (sorted(place.glob("*.safetensors")) or [place])]
    try:
        here = {part.relative_to(root).as_posix(): sha256(part) for part in parts}
    except OSError as error:
        raise Refusal(f"{error.filename} cannot be read ({error.strerror})") from error
    if here != dict(exported.files_sha256):
        either = sorted(here.keys() | exported.files_sha256.keys())
        changed = [n for n in either if here.get(n) != exported.files_sha256.get(n)]
        raise Refusal(
            f"{path} is damaged or was changed ({', '.join(changed)[:200]}): export it again or copy it whole"
        )
    return found


def read(path: Path) -> Exported:
    """Understand an exported file or folder.

    Raises:
        Refusal: it is missing, no export, damaged, or newer than this version.
    """
    try:
        said = _described(path)
    except FileNotFoundError as error:
        advice = not_here(path) or "; `cosmos-distill RECIPE.py` writes one in its export stage"
        raise Refusal(f"{path}: no such file{advice}") from error
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        kind = "export" if path.is_dir() or path.suffix in TORCH else "safetensors file"
        raise Refusal(f"{path} is no {kind} ({error})") from error
    if said.get("format") != FORMAT:
        raise Refusal(f"{path} was not written by an export stage of this version: export it again")
    try:
        network = _network(said.get("network"))
        data = _mapping(said["data"])
        negative = _negative(said, data)
        control = _fitting(said["control"], Control | None, "control")
        count = len(weights_of(control))  # one branch takes any of them
        if bool(count) != bool(network.controls) or (network.controls > 1 and count != network.controls):
            raise ValueError(f"control {control!r} of the network {title(network)}")
        clips = _data(data)
        _check_size(clips, network)
        schedule = schedule_from_dict(_mapping(said["schedule"]))
        if (wanted := network.family.schedule) is not None and not isinstance(schedule.config, wanted):
            raise ValueError(f"schedule {said['schedule']['kind']!r} of the network {title(network)}")
        return Exported(
            network=network,
            control=control,
            data=clips,
            schedule=schedule,
            sampler=_sampler(_mapping(said["sampler"])),
            precision=_fitting(said["precision"], ExportPrecision, "precision"),
            tokenizer_sha256=_checksums(_mapping(said.get("tokenizer", {})).get("sha256", {})),
            negative_prompt_sha256=negative,
            negative_prompt=_fitting(said.get("negative_prompt"), str | None, "negative_prompt"),
            text_encoder_sha256=_checksums(_mapping(said.get("text_encoder") or {}).get("sha256", {})),
            files_sha256=_checksums(said.get("files", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(
            f"{path} says what no export stage of this version writes ({error}): export it again"
        ) from error


def with_files(exported: Exported, options: SampleOptions, student: Path) -> Data:
    """The student's data with the tokenizer that the user names, which must be the one it was made with.

    Raises:
        Refusal: it is not given, not there, or another one.
    """
    data, given = exported.data, options.tokenizer
    known = ", ".join(f"{name} {digest[:12]}..." for name, digest in exported.tokenizer_sha256.items())
    kind = find(data.tokenizer)
    if kind.files is None:
        if given is not None:
            raise Refusal(
                f"--tokenizer {given}: {student} was made with {data.tokenizer}, which has no files: leave "
                "it out"
            )
        return data
    if given is None and kind.shipped is not None and fingerprint(data) == exported.tokenizer_sha256:
        return data
    if given is None:
        said = f" ({known})" if known else ""
        raise Refusal(
            f"{student} was made with the {data.tokenizer} tokenizer{said}, and no path in a file is opened: "
            "give its folder with --tokenizer"
        )
    data = dataclasses.replace(data, tokenizer_path=given)
    try:
        found = fingerprint(data)
    except (OSError, ValueError) as error:
        raise Refusal(f"--tokenizer {given}: {error}") from error
    wanted = exported.tokenizer_sha256
    if wanted and found != wanted:
        here = ", ".join(f"{name} {digest[:12]}..." for name, digest in found.items())
        raise Refusal(
            f"--tokenizer {given} is another tokenizer ({here}) than {student} was made with ({known}): its "
            "latents would mean something else. Give the one of its training"
        )
    return data


def _data(said: Mapping[str, Any]) -> Data:
    known = {key: value for key, value in said.items() if key not in _LEFT_OUT}
    data = _build(Data, known)
    if data.text_folder is not None and not inside(data.text_folder):
        raise ValueError(f"text_folder {data.text_folder!r} leaves the folder of the clips")
    # Whatever its clips lay in, those of a sample are a folder's.
    return dataclasses.replace(data, source="folder", negative_prompt="") if data.own else data


def _check_size(data: Data, network: DiTConfig) -> None:
    """Raises ValueError for clips that the tokenizer or the network does not take."""
    kind = find(data.tokenizer)
    side = kind.space * network.patch
    uneven = data.height % side > 0 or data.width % side > 0 or kind.misfit(data.frames) is not None
    latents = kind.latent_frames(data.frames), data.height // kind.space, data.width // kind.space
    most = network.max_frames, network.max_height, network.max_width
    if uneven or any(size > limit for size, limit in zip(latents, most, strict=True)):
        raise ValueError(f"clips of {data.frames} frames of {data.width} x {data.height}")


def _network(said: Any) -> DiTConfig:
    """Sizes of the network, which have to be those of one that denoises."""
    found = read_network(said)
    if not isinstance(found, DiTConfig):
        raise ValueError(f"{title(found)}, which draws nothing")
    return found


def _negative(said: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Checksum of the embedding; earlier versions stored its path, which is not opened."""
    if data.get("source", "folder") in ("folder", "shards") and data.get("negative_prompt"):
        return ""
    found = said.get("negative_prompt_sha256")
    return None if found is None else _fitting(found, str, "negative_prompt_sha256")


def _sampler(said: Mapping[str, Any]) -> FewStep | ManySteps:
    """``few_step`` or ``teacher``; the first exports said ``one_step`` and ``res_2ab`` for the same."""
    settings = {key: value for key, value in said.items() if key != "kind"}
    if said["kind"] in ("few_step", "one_step"):
        return _build(FewStep, settings)
    if said["kind"] not in ("teacher", "res_2ab"):
        raise ValueError(f"sampler {str(said['kind'])[:100]!r}")
    guidance = _build(Guidance, _mapping(settings["guidance"]))
    return ManySteps(_fitting(settings["steps"], int, "steps"), guidance)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} in place of a table")
    return value


def _checksums(value: Any) -> dict[str, str]:
    return {name: _fitting(digest, str, "sha256") for name, digest in _mapping(value).items()}


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A configuration from JSON, each value of the type that its field declares."""
    known: dict[str, Any] = hints(cls)  # type: ignore[arg-type]
    if unknown := values.keys() - known.keys():
        raise ValueError(f"unknown: {', '.join(sorted(unknown))[:100]!r}")
    return cls(**{name: _part(value, known[name], name) for name, value in values.items()})


def _part(value: Any, hint: Any, name: str) -> Any:
    """A field's value, or the configuration that it holds."""
    if isinstance(hint, type) and issubclass(hint, Checked):
        return _build(hint, _mapping(value))
    return _fitting(value, hint, name)


def _fitting(value: Any, hint: Any, name: str) -> Any:
    if not fits(value, hint):
        raise TypeError(f"{name} is {str(value)[:100]!r}")
    return tuple(value) if isinstance(value, list) else value
