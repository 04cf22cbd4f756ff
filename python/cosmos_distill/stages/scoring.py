"""Numbers per clip of drawn and real clips, batch by batch: found by the data-parallel ranks at the same
time, kept as they come.

Rank 0 has what was drawn and hands it out; every rank decodes a batch and measures it on its own device; what
comes back is a few numbers per clip, which rank 0 writes. An interrupted evaluation measures what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cosmos_distill.config import Evaluate, Recipe
from cosmos_distill.eval.measure import Numbers, load, read
from cosmos_distill.eval.metrics import blur_ssim, canny_f1, given_frames, motion, random_frechet
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.scores import Clips, numbers
from cosmos_distill.eval.views import View
from cosmos_distill.files import regular
from cosmos_distill.launch.shared import handed_out
from cosmos_distill.run.networks import device
from cosmos_distill.run.sizes import pixel_frames
from cosmos_distill.sampling import candidates as drawn_by
from cosmos_distill.storage import disk_errors, publish_tensors
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import GRID_CLIPS, shown

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.sources import Source

REAL, CODEC, REFERENCE = "real", "codec", "reference"
"""What is measured besides candidates: the clips that conditions come from, those after the tokenizer's round
trip, and other real clips, which sets are compared with."""
FEATURES, GIVEN, PICTURE = "features", "given frames", "picture"
"""Numbers that are no metric's: those of the distance where none is named, errors of given frames, and
frames for the grid."""
_AT_ONCE = 2**29
"""Bytes of real clips that are read together."""

Piece = tuple[int, int]
"""(first sample, count)."""


@dataclass(frozen=True)
class Task:
    """What is missing of one batch."""

    first: int
    count: int
    keys: tuple[str, ...]


class Scoreboard:
    """Numbers per clip of one set of held-out clips, in files beside what was drawn; used by rank 0.

    Args:
        folder: Where to keep them.
        made_by: What they follow from beside the clips; kept numbers of anything else are not taken.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self._folder = folder / "scores"
        said = json.dumps(made_by, sort_keys=True, default=str)
        self._made_by = hashlib.sha256(said.encode()).hexdigest()

    def missing(
        self, pieces: Sequence[Piece], keys: Sequence[str], of: Callable[[str, int], str]
    ) -> list[Task]:
        """What is not kept, or damaged, or of other latents than ``of`` (who, first sample) says."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        found = []
        for first, count in pieces:
            wanted = tuple(key for key in keys if not self._whole(key, first, count, of(key, first)))
            if wanted:
                found.append(Task(first, count, wanted))
        return found

    def keep(self, key: str, first: int, of: str, found: Numbers) -> None:
        """Write the numbers of one batch, at once or not at all."""
        tensors = {
            name: value.contiguous() for name, value in found.items() if not isinstance(value, NoScore)
        }
        reasons = {name: str(value) for name, value in found.items() if isinstance(value, NoScore)}
        count = max((len(value) for value in tensors.values()), default=0)
        said = {"of": of, "made_by": self._made_by, "reasons": json.dumps(reasons), "count": str(count)}
        # A file of no tensors is none.
        publish_tensors(tensors or {"none": torch.zeros(0)}, self._path(key, first), said)

    def of(self, key: str, first: int) -> Numbers:
        """The numbers of one batch."""
        path = self._path(key, first)
        found: Numbers = dict(load_file(path))
        found.pop("none", None)
        return found | {
            name: NoScore(why) for name, why in json.loads(read_metadata(path)["reasons"]).items()
        }

    def _path(self, key: str, first: int) -> Path:
        return self._folder / f"{key}-{first:06d}.safetensors"

    def _whole(self, key: str, first: int, count: int, of: str) -> bool:
        path = self._path(key, first)
        try:
            regular(path)
            said = read_metadata(path)
            found = self.of(key, first)
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        right = all(isinstance(v, NoScore) or len(v) == count or name == PICTURE for name, v in found.items())
        return right and bool(found) and (said.get("of"), said.get("made_by")) == (of, self._made_by)


def measure_missing(
    board: Scoreboard,
    tasks: Sequence[Task],
    latents: Callable[[str, int], tuple[Tensor, str]],
    measured: Callable[[Task, Mapping[str, Tensor]], dict[str, Numbers]],
    between: Callable[[], None],
) -> None:
    """Measure ``tasks``, which all ranks know, a batch on each data-parallel rank at a time.

    Args:
        board: Of rank 0, where the numbers go.
        latents: (candidate, first sample) -> what was drawn, and its checksum; called on rank 0.
        measured: (task, latents by candidate) -> numbers by who they are of; called on ranks that read clips.
        between: Called on all ranks before each round; may raise, on all of them.
    """

    def drawn(task: Task) -> dict[str, tuple[Tensor, str]]:
        return {key: latents(key, task.first) for key in task.keys if key not in (REAL, CODEC, REFERENCE)}

    def work(task: Task, given: dict[str, tuple[Tensor, str]]) -> dict[str, tuple[str, Numbers]]:
        with torch.no_grad():
            found = measured(task, {key: value for key, (value, _) in given.items()})
        return {key: (given[key][1] if key in given else "", of_key) for key, of_key in found.items()}

    for task, made in handed_out(tasks, drawn, work, between):
        for key, (of, found) in made.items():
            board.keep(key, task.first, of, found)


def of_batch(
    clips: Source,
    stage: Evaluate,
    recipe: Recipe,
    hidden: Iterable[str],
    task: Task,
    latents: Mapping[str, Tensor],
) -> dict[str, Numbers]:
    """Numbers of what ``task`` names of one batch. Real clips are read and measured once for all of it.

    Args:
        hidden: Candidates that the grid does not show.
    """
    first = drawn_by.clip_of(stage, task.first)
    real, batch = clips.pixels(first, task.count)[0], clips.batch(first, task.count)
    frames = drawn_by.given_frames(stage, batch)
    given = None if frames is None else [pixel_frames(recipe, n) for n in frames.tolist()]
    named = stage.metrics is not None
    needs_codec = named or CODEC in task.keys or any(stage.condition_frames)
    codec = clips.decode(batch.latents).cpu() if needs_codec else None
    whole = View(real, networks=stage.networks, device=device())
    found: dict[str, Numbers] = {}
    for key in task.keys:
        if key == REAL:
            video = real
        elif key == CODEC:
            assert codec is not None
            video = codec
        else:
            video = clips.decode(latents[key]).cpu()
        if named:
            how = None if given is None else torch.tensor(given)
            view = View(video, whole, codec=real if key == REAL else codec, given=how, **_place(stage))
            of_key = read(load(stage.metrics or ()), view)
        else:
            of_key = _unnamed(measure(recipe, video, real))
        if key in latents:
            if not latents[key].isfinite().all():
                of_key = _without(of_key, task)
            if any(stage.condition_frames):
                assert codec is not None and given is not None
                of_key[GIVEN] = given_frames.squared_errors(video, codec, given, device())
            if task.first < GRID_CLIPS and key not in hidden:
                of_key[PICTURE] = shown(video)[: GRID_CLIPS - task.first]
        found[key] = of_key
    return found


def of_reference(clips: Source, stage: Evaluate, task: Task) -> dict[str, Numbers]:
    """Numbers of other real clips, which sets are compared with."""
    video = clips.pixels(task.first, task.count)[0]
    if stage.metrics is None:
        return {REFERENCE: {FEATURES: numbers(partial(random_frechet.features, video, device()))}}
    return {REFERENCE: read(load(stage.metrics), View(video, **_place(stage)), as_set=True)}


def reference_pieces(first: int, count: int, shape: tuple[int, int, int]) -> list[Piece]:
    """Batches of ``count`` real clips from ``first`` on, of (frames, height, width)."""
    frames, height, width = shape
    size = max(1, min(64, _AT_ONCE // (3 * frames * height * width)))
    return [(n, min(size, first + count - n)) for n in range(first, first + count, size)]


def measure(recipe: Recipe, video: Tensor, real: Tensor) -> Clips:
    """Numbers per clip of generated clips and the real ones whose conditions they were made from.

    With a control, a clip has to match the real one; without, nothing but its motion tells it from a still.
    """
    where = device()
    features = numbers(partial(random_frechet.features, video, where))
    if recipe.control is None:
        return Clips(features, {"motion": numbers(partial(motion.energies, video, real, where))})
    ssim = numbers(partial(blur_ssim.per_clip, video, real, where))
    return Clips(features, {"canny_f1": canny_f1.counts(video, real), "blur_ssim": ssim})


def clips_of(found: Sequence[Numbers]) -> Clips:
    """All batches of one set, where the stage names no metrics."""
    apart = (FEATURES, GIVEN, PICTURE)
    return Clips.cat(
        [Clips(of[FEATURES], {name: v for name, v in of.items() if name not in apart}) for of in found]
    )


def _unnamed(clips: Clips) -> Numbers:
    return {FEATURES: clips.features, **clips.values}


def _without(found: Numbers, task: Task) -> Numbers:
    """No scores: decoded, what is not finite looks like something that was drawn."""
    last = task.first + task.count - 1
    return dict.fromkeys(found, NoScore(f"among clips {task.first} to {last} some hold NaN or infinity"))


def _place(stage: Evaluate) -> dict[str, Any]:
    return {"networks": stage.networks, "device": device()}
