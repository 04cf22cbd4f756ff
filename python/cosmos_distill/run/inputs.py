"""Files of the user's that a stage reads, by content: what they hold counts, not names, sizes or places.

Which stage is made from which files:

===============  =======================================================================================
Encode           clips of both splits with text and control; negative prompt; tokenizer
Generate         clips for training with text, control and noise; negative prompt; tokenizer; text
                 encoder, where captions are read; teacher
Train on clips   the same
Train on pairs   the pairs, in which all of that is contained; teacher
Evaluate         the same of the clips held out; negative prompt; tokenizer; teacher; students
Export           a student
... clips_from   the same, with the shards of an Encode stage in place of clips, text and negative prompt
===============  =======================================================================================

So a change of held-out clips leaves all training as it is, and one of training clips what was made from pairs
that exist. A stage keeps :data:`RECORD`, the hashes of the files that it was made from. After a change

* a stage that has made nothing yet begins with the files as they are;
* a complete stage stays complete, and one under way goes on, as long as every clip that it could use is still
  there, unchanged and in the same split: clips that are added, and clips that were skipped and are mended,
  take nothing back. An evaluation under way is the exception, since they move the clips behind them;
* otherwise it is refused, and the clips are named. Whoever wants to keep what was made deletes the stage's
  record; whoever wants it made from the new files deletes the stage's folder, and those made from it.

Manifests of earlier versions hold a hash over names and sizes instead (:func:`_names_and_sizes`), and the
places of negative prompt and tokenizer: they hold as long as these are the same, and once a run has found a
complete stage so, it has it go by contents like any other. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cosmos_distill import text
from cosmos_distill.config import Data, Encode, Evaluate, Generate, Recipe, Stage, Train
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.data.captions import negative_prompt
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.encoded_files import Encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import index_of
from cosmos_distill.errors import Refusal
from cosmos_distill.files import read_json
from cosmos_distill.run.encoded import reads_encoded
from cosmos_distill.run.manifest import CHECKSUM, RECORD, Manifest, checksum, sha256_of_listing
from cosmos_distill.run.sizes import denoiser, latent_frames, tokenizer
from cosmos_distill.storage import publish_json

if TYPE_CHECKING:
    from cosmos_distill.data.survey import Survey

ALL: Literal["all"] = "all"
"""Clips of both splits."""
_SHOWN = 10
"""Clips that one message names."""
_CONTENT = "content "
"""Begins a hash over contents; one over names and sizes has no such word."""
_ABSENT = "-"
_WEIGHTS = (".jit", ".pt", ".pth", ".safetensors", ".json")
"""Suffixes of what a tokenizer is made of; a README beside it is not."""


def look(recipe: Recipe) -> dict[str, dict[str, Survey | Encoded]]:
    """The folders of clips as they are now, by split and by the names of sources; none where clips come from
    elsewhere.

    Raises:
        Refusal: files beside the clips are wrong, or a stage would find no clip that can be used.
    """
    from cosmos_distill.data.survey import survey  # reads files with libraries that --help need not wait for

    data, network = recipe.data, denoiser(recipe)
    if not data.own or (data.root is None and not data.sources):
        return {}
    latents = None
    if network is not None:
        space = tokenizer(data).space
        latents = network.latent_channels, latent_frames(recipe), data.height // space, data.width // space
    known: dict[tuple[Path | None, str], Survey | Encoded] = {}
    looked: dict[str, dict[str, Survey | Encoded]] = {}
    width = None if network is None else network.text_channels
    splits = [split for stage in recipe.stages.values() for split in _splits(stage, data)]
    for split in dict.fromkeys(["train", *splits]):
        parts, held = data.places(split)
        for part in parts:
            try:
                place = part.data.root, held
                if place not in known and reads_encoded(part.data):
                    assert part.data.root is not None
                    known[place] = found = Encoded(part.data.root)
                    if misfits := found.misfits(part.data, recipe.control, width):
                        raise DataError("\n".join(misfits))
                elif place not in known:
                    known[place] = survey(
                        part.data,
                        recipe.control,
                        text_channels=width,
                        latent_shape=latents,
                        held=held,
                    )
                looked.setdefault(split, {})[part.name] = known[place]
                if split in splits:
                    known[place].usable("train" if split in ("train", ALL) else "eval")
            except DataError as error:
                raise Refusal(str(error)) from error
            except OSError as error:
                raise Refusal(f"{part.data.root} cannot be read ({error})") from error
    if data.buckets is not None:
        _refuse_short(recipe, looked)
    return looked


def _refuse_short(recipe: Recipe, looked: Mapping[str, Mapping[str, Survey | Encoded]]) -> None:
    """Of clips of many shapes, what is drawn and scored is of one.

    Raises:
        Refusal: no clip is long enough for that.
    """
    from cosmos_distill.data.windows import too_short

    one = replace(recipe.data, buckets=None)
    drawing = [stage for stage in recipe.stages.values() if isinstance(stage, Generate | Evaluate)]
    for split in dict.fromkeys(
        split for stage in drawing for split in _splits(stage, recipe.data) if split in looked
    ):
        half: Literal["train", "eval"] = "train" if split == "train" else "eval"
        if not any(found.long_enough(half, one) for found in looked[split].values()):
            raise Refusal(too_short(recipe.data, split))


def _splits(stage: Stage, data: Data) -> list[str]:
    """All of the clips that a stage reads."""
    split = reads(stage)
    if split == ALL and data.held_out is not None:
        return [ALL, "eval"]
    return [] if split is None else [split, *([OUT_OF_DOMAIN] if isinstance(stage, Evaluate) else [])]


def reads(stage: Stage) -> Literal["train", "eval", "all"] | None:
    """The split of the clips from which a stage makes what it leaves behind."""
    if getattr(stage, "clips_from", None) is not None:
        return None
    if isinstance(stage, Encode):
        return ALL
    if isinstance(stage, Evaluate):
        return "eval"
    if isinstance(stage, Generate) or (isinstance(stage, Train) and stage.pairs_from is None):
        return "train"
    return None


def fingerprints(recipe: Recipe, stage: Stage) -> tuple[dict[str, str], dict[str, Any]]:
    """Hashes of what a stage reads, for its manifest, and its :data:`RECORD`, empty where there is none."""
    split, data = reads(stage), recipe.data
    if split is None:  # clips of an earlier stage, which has read all of it
        return {}, {}
    found = {}
    if data.tokenizer_path is not None and _looks_through_tokenizer(recipe, stage):
        found["tokenizer"] = of_files([data.tokenizer_path], _WEIGHTS)
    for name in ControlMix.read(recipe.control).used:
        if (place := (data.control_models or {}).get(name)) is not None:
            found[f"control model {name}"] = of_files([place], _WEIGHTS)
    looked = look(recipe)
    if not looked:
        return found | {"clips": data.source}, {}
    folders = dict(looked[split])
    _refuse_other_tokenizer(data, stage, [f for f in folders.values() if isinstance(f, Encoded)])
    if len(folders) > 1:
        weights = [part.weight for part in data.parts()]
        found["mixture"] = " ".join(f"{weight / sum(weights):.6g}" for weight in weights)
    if split == ALL and data.held_out is not None:
        folders["held out"] = looked["eval"][""]
    told = negative_prompt(data.negative_prompt)
    if told is not None:
        found["negative_prompt"] = of_files([told]) if isinstance(told, Path) else _text(told)
    names: list[str] = []
    hashes: dict[str, dict[str, str]] = {}
    skipped: dict[str, str] = {}
    for number, folder in enumerate(folders.values(), start=1):
        before = f"{number}:" if "" not in folders or number > 1 else ""  # by its place, which moving leaves
        own = list(folder.names) if split == ALL else folder.split(split)
        try:
            hashed = folder.hashes([name for name in own if name in folder.samples])
        except OSError as error:
            raise Refusal(f"a clip cannot be read ({error}): mend it, or take it away") from error
        names += [before + name for name in own]
        hashes |= {before + name: files for name, files in hashed.items()}
        skipped |= {before + name: folder.skipped[name] for name in own if name in folder.skipped}
    captioned = any("caption" in files for files in hashes.values())
    if data.text_encoder is not None and (captioned or isinstance(told, str)):
        found["text_encoder"] = of_files(text.files(data.text_encoder))
    digest = _CONTENT + sha256_of_listing([json.dumps(hashes.get(name, _ABSENT)) for name in names])
    if isinstance(stage, Evaluate) and OUT_OF_DOMAIN in looked:
        (other,) = looked[OUT_OF_DOMAIN].values()
        of_it = other.hashes([name for name in other.names if name in other.samples])
        found[OUT_OF_DOMAIN] = _CONTENT + sha256_of_listing([json.dumps(files) for files in of_it.values()])
    return found | {"clips": digest}, {"clips": hashes, "skipped": skipped, "sha256": digest}


def _text(prompt: str) -> str:
    return f"text {hashlib.sha256(prompt.encode()).hexdigest()}"


def _looks_through_tokenizer(recipe: Recipe, stage: Stage) -> bool:
    """Whether what a stage leaves behind depends on the tokenizer: of encoded clips only scores do."""
    return isinstance(stage, Evaluate) or not reads_encoded(recipe.data)


def _refuse_other_tokenizer(data: Data, stage: Stage, encoded: Sequence[Encoded]) -> None:
    """Latents mean something to the tokenizer that made them only.

    Raises:
        Refusal: the one that is given, or taken where none is, has other weights.
    """
    given = None if data.tokenizer_path is None else of_files([data.tokenizer_path], _WEIGHTS)
    for one in encoded:
        needed = isinstance(stage, Evaluate) or one.said["drawn_control"]
        if one.said["inputs"].get("tokenizer") != given and (needed or given is not None):
            raise Refusal(
                f"--data.tokenizer-path {data.tokenizer_path}: {one.place} was encoded with a tokenizer of "
                "other weights: give that one"
            )


def of_files(paths: Iterable[Path], suffixes: tuple[str, ...] = ()) -> str:
    """SHA-256 of one file, or over the names and hashes of several; of a folder, of all that lies in it, or
    of what lies right in it with one of ``suffixes``."""

    def inside(folder: Path) -> list[Path]:
        if suffixes:
            return sorted(path for path in folder.iterdir() if path.suffix in suffixes)
        return sorted(folder.rglob("*"))

    files = [f for p in paths for f in (inside(p) if p.is_dir() else [p]) if f.is_file()]
    if not files:
        return sha256_of_listing([])
    index = index_of(files[0].parent)
    hashes = index.each(files, index.sha256, f"{files[0].parent}: hashing")
    if len(files) == 1:
        return str(hashes[0])
    return sha256_of_listing([f"{file.name} {hashed}" for file, hashed in zip(files, hashes, strict=True)])


def goes_by_names(found: Manifest) -> bool:
    """Whether an earlier version made the stage, from a folder of clips of which it knew names and sizes."""
    folder = found.configuration.get("data", {}).get("source") == "folder"
    return folder and not found.inputs.get("clips", _CONTENT).startswith(_CONTENT)


def keep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a stage that begins or goes on."""
    if record:
        publish_json(folder / RECORD, {**record, CHECKSUM: checksum(record)}, indent=1)


def change(
    found: Manifest, wanted: Manifest, recipe: Recipe, stage: Stage, folder: Path, record: Mapping[str, Any]
) -> tuple[str | None, str]:
    """What forbids to use a stage made from other files, in words that say the least that helps; and a remark
    about what does not."""
    if reads(stage) is None:
        return None, ""
    for key in sorted(
        k for k in found.inputs.keys() | wanted.inputs.keys() if k.startswith("control model ")
    ):
        if found.inputs.get(key) != wanted.inputs.get(key):
            return f"{key}: made with another than is given now", ""
    for key, place in (("tokenizer", "tokenizer_path"), ("negative_prompt", "negative_prompt")):
        if key == "tokenizer" and not _looks_through_tokenizer(recipe, stage):
            continue
        if (reason := _other_file(key, place, found, wanted, recipe)) is not None:
            return reason, ""
    if found.inputs.get(OUT_OF_DOMAIN) != wanted.inputs.get(OUT_OF_DOMAIN):
        return "--data.out-of-domain: made with other clips than are given now", ""
    encoders = {m.inputs["text_encoder"] for m in (found, wanted) if "text_encoder" in m.inputs}
    if len(encoders) > 1:
        return "text encoder: made with another than is given now", ""
    made_from, now = found.inputs.get("clips"), wanted.inputs.get("clips")
    if made_from == now:
        return None, ""
    if made_from is None or not record or not made_from.startswith(_CONTENT):
        if record and made_from == _names_and_sizes(recipe):
            return None, ""
        then = (
            "by the names and sizes of all files there, as earlier versions did, and one is another now. Put "
            "them back for one run: from then on contents count, and what comes to them takes nothing back"
            if record and made_from
            else f"as {made_from!r}, not {now!r}"
        )
        return f"clips: recorded {then}", ""
    if isinstance(stage, Evaluate) and not found.complete:
        return "held-out clips were changed, added or removed since it began to draw", ""
    before = _record(folder)
    if before is None:  # deleted by the user, as the message below says
        return None, "made from other clips than there are now"
    if before.get("sha256") == now:  # written just before a kill
        return None, ""
    lost = _lost(before, record)
    if not lost:
        new = [name for name in record["clips"] if name not in before["clips"]]
        return None, f"made before these clips were added or mended: {_some(new)}" if new else ""
    keeping = "keep it" if found.complete else "go on"
    return (
        f"made from clips that are others now: {_some(lost)}. Put them back as they were, or delete "
        f"{folder / RECORD} to {keeping} all the same"
    ), ""


def _other_file(key: str, place: str, found: Manifest, wanted: Manifest, recipe: Recipe) -> str | None:
    if key in found.inputs:
        same = found.inputs[key] == wanted.inputs.get(key)
        return None if same else f"{key.replace('_', ' ')}: made with another than is given now"
    # Earlier versions recorded the place; later ones nothing at all where there was none.
    then = str(found.configuration.get("data", {}).get(place) or "")
    now = str(getattr(recipe.data, place) or "")
    return None if then == now else f"data.{place}: made with {then!r}, now asked for {now!r}"


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = read_json(path)
        if not all(isinstance(files, dict) for files in record["clips"].values()):
            raise ValueError("no hashes")
        if record.pop(CHECKSUM, None) not in (None, checksum(record)):  # earlier versions wrote none
            raise ValueError("its checksum differs")
        return record
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise Refusal(
            f"{path} is damaged ({error}), and clips have changed, which it would name: put them back, or "
            "delete it to use what was made from the others"
        ) from error


def _lost(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Clips that a stage could use and that are not what they were."""
    lost = []
    for name, files in before["clips"].items():
        there = now["clips"].get(name)
        if there is None:
            why = now["skipped"].get(name)
            lost.append(
                f"{name} ({why or 'gone, or in the other split, since files came or went before it'})"
            )
        elif changed := [what for what in {**files, **there} if files.get(what) != there.get(what)]:
            lost.append(f"{name} ({', '.join(changed)})")
    return lost


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _names_and_sizes(recipe: Recipe) -> str:
    """What versions before contents counted wrote for the clips."""
    data = recipe.data
    if data.root is None:
        return ""
    names = [name for name in ("videos", data.text_folder or "t5_xxl", recipe.control) if name]
    wanted = [d for d in (data.root / n for n in names) if d.is_dir()]
    files = sorted(p for d in wanted for p in d.iterdir() if p.is_file())
    return sha256_of_listing([f"{p.relative_to(data.root).as_posix()} {p.stat().st_size}" for p in files])
