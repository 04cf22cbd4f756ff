"""Evaluate stage: teacher and students under the same conditions of held-out clips, with the same noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cosmos_distill.config import Evaluate, Recipe
from cosmos_distill.data.control_mix import control_rows
from cosmos_distill.eval import latency
from cosmos_distill.eval.metrics import blur_ssim, canny_f1, given_frames, motion, random_frechet
from cosmos_distill.eval.missing import NoScore, attempt, ratio
from cosmos_distill.eval.scores import Clips, numbers, ratio_interval, score
from cosmos_distill.files import regular
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import Shared, drawn
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.manifest import File, Scores, plain
from cosmos_distill.run.networks import device, load_to_draw, open_clips
from cosmos_distill.run.progress import Log, Work, work
from cosmos_distill.run.runner import Run
from cosmos_distill.run.sizes import pixel_frames
from cosmos_distill.sampling import candidates as drawn_by
from cosmos_distill.sampling.candidates import Candidate, candidates, student_sampler
from cosmos_distill.sampling.samplers import evaluations, noise_of
from cosmos_distill.stages import measures
from cosmos_distill.stages.step_time import measure as measure_step
from cosmos_distill.storage import disk_errors, publish_json, publish_tensors
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import GRID_CLIPS, grid

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.clips import FilmSplit
    from cosmos_distill.data.sources import Source

REFERENCE_CLIPS = (256, 1024)
"""Fewest and most real held-out clips, other than those whose conditions are used, that every set is compared
with; in between four times the clips scored, so that the reference's own error hardly counts."""
LATENCY_ROUNDS = 3
OUT_OF_DOMAIN: Final = "out_of_domain"
"""Split, folder and name in scores.json of Data.out_of_domain."""


def run(name: str, stage: Evaluate, run: Run, folder: Path) -> Scores:
    """Draw, score and time; drawn batches are kept, so that an interrupted evaluation goes on.

    Clips of another domain, where there are some, are scored alike, by themselves.

    Data-parallel ranks draw a batch each; rank 0 decodes and scores them. All ranks time, since a network
    may be spread over any of them, and rank 0's clock counts.
    """
    torch.manual_seed(run.recipe.seed)
    who = candidates(stage, run)
    log = Log(folder)
    sets = {"": _HeldOut.open(run.recipe, stage.split or "eval", folder)}
    if run.recipe.data.out_of_domain is not None:
        sets[OUT_OF_DOMAIN] = _HeldOut.open(run.recipe, OUT_OF_DOMAIN, folder / OUT_OF_DOMAIN)
    batches = measures.pieces(stage)
    pieces = len(sets) * -(-len(batches) // groups.data_size()) * sum(c.cost for c in who.values())
    with work(run.console, name, pieces, run.stop, "drawn batches are kept, the same command goes on") as bar:
        for title, held in sets.items():
            for key, candidate in who.items():
                missing = on_rank_zero(partial(_missing, held.folder, key, batches))
                for first, latents in _draw(candidate, missing, held.shared, stage, run.recipe, bar):
                    latents = latents.contiguous()
                    said = {"who": key, "sha256": _digest(latents)}
                    publish_tensors({"latents": latents}, _kept(held.folder, key, first), said)
                if ranks.is_main():
                    # Drawn as the teacher's one step.
                    hidden = key == "untrained_student" and "teacher_1step" in who
                    _score(held, key, None if hidden else candidate.label, batches, stage, run)
                    log.line(scored=key, **({"of": title} if title else {}))
    for title, held in sets.items():
        run.details[title or "data"] = held.shared.description()
    latencies = _latencies(stage, run, who, sets[""].shared)

    def finish() -> Scores:
        scored = {title: _scores(held, who, batches, stage, run) for title, held in reversed(sets.items())}
        return _write(sets, scored, latencies, who, stage, run, folder)

    return on_rank_zero(finish)


def _draw(
    candidate: Candidate,
    missing: list[tuple[int, int]],
    source: Shared,
    stage: Evaluate,
    recipe: Recipe,
    bar: Work,
) -> Iterator[tuple[int, Tensor]]:
    """(first sample, latents) of the batches that are missing, on rank 0. The candidate's network is loaded
    for them alone: with the next one's beside it a large one would not fit."""
    if not missing:
        return
    network = load_to_draw(recipe, candidate.weights, stage.batch)

    def draw(first: int, count: int) -> tuple[int, Tensor]:
        batch = source.batch(drawn_by.clip_of(stage, first), count).to(device())
        batch = replace(batch, first=first)  # which the noise depends on
        noise = noise_of(recipe.seed, "evaluate", batch)
        return first, candidate.draw(network, batch, noise, bar.advance).cpu()

    yield from drawn(missing, draw, bar.together)


@dataclass(frozen=True)
class _HeldOut:
    """One set of held-out clips, and what rank 0 has found out about them."""

    clips: Source | None
    """None on ranks that read no clips."""
    shared: Shared
    folder: Path
    """Of what is kept of them."""
    measured: dict[str, Clips] = field(default_factory=dict)
    """By candidate."""
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How exactly given frames come back, by candidate."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """By label."""

    @classmethod
    def open(cls, recipe: Recipe, split: FilmSplit, folder: Path) -> _HeldOut:
        """The clips of a split."""
        clips = open_clips(recipe, split) if Shared.reads() else None
        return cls(clips, Shared(clips), folder)

    @property
    def own(self) -> Source:
        """The clips, on a rank that reads them."""
        assert self.clips is not None
        return self.clips


def _kept(folder: Path, key: str, first: int) -> Path:
    """Latents of one batch, which an interrupted evaluation does not draw again."""
    return folder / "samples" / f"{key}-{first:06d}.safetensors"


def _missing(folder: Path, key: str, batches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Batches to draw: those without a file, or with one that is damaged."""
    with disk_errors(folder / "samples"):
        (folder / "samples").mkdir(parents=True, exist_ok=True)
    return [piece for piece in batches if not _whole(_kept(folder, key, piece[0]), piece[1])]


def _whole(path: Path, count: int) -> bool:
    try:
        regular(path)
        latents, said = load_file(path)["latents"], read_metadata(path)
    except (OSError, SafetensorError, KeyError, ValueError):
        return False
    # Files of earlier versions carry no checksum.
    return len(latents) == count and said.get("sha256") in (None, _digest(latents))


def _digest(latents: Tensor) -> str:
    return hashlib.sha256(latents.numpy().tobytes()).hexdigest()


def _score(
    held: _HeldOut, key: str, label: str | None, batches: list[tuple[int, int]], stage: Evaluate, run: Run
) -> None:
    """Measure the drawn clips of one candidate; without a label it has no picture."""
    clips = held.own
    parts, errors = [], []
    for first, count in batches:
        latents = load_file(_kept(held.folder, key, first))["latents"]
        videos = clips.decode(latents)
        clip = drawn_by.clip_of(stage, first)
        if stage.metrics is None:
            part = measure(run.recipe, videos, clips.pixels(clip, count)[0])
            parts.append(part if latents.isfinite().all() else _without(part, first, count))
        if any(stage.condition_frames):
            batch = clips.batch(clip, count)
            frames = drawn_by.given_frames(stage, batch)
            assert frames is not None
            given = [pixel_frames(run.recipe, n) for n in frames.tolist()]
            errors.append(given_frames.squared_errors(videos, clips.decode(batch.latents), given, device()))
        if first < GRID_CLIPS and label is not None:
            shown = [held.pictures[label]] if first else []
            held.pictures[label] = torch.cat([*shown, videos.cpu()])[:GRID_CLIPS]
    if parts:
        held.measured[key] = Clips.cat(parts)
    if errors and (kept := given_frames.summary(torch.cat(errors)))["clips"]:
        held.kept[key] = kept


def _without(part: Clips, first: int, count: int) -> Clips:
    """No scores: decoded, what is not finite looks like something that was drawn."""
    reason = NoScore(f"among clips {first} to {first + count - 1} some hold NaN or infinity")
    return Clips(reason, dict.fromkeys(part.values, reason))


def _scores(
    held: _HeldOut, who: dict[str, Candidate], batches: list[tuple[int, int]], stage: Evaluate, run: Run
) -> dict[str, Any]:
    """What scores.json has of metrics, of one set of clips."""

    def drawn(key: str, first: int) -> Tensor:
        return load_file(_kept(held.folder, key, first))["latents"]

    if stage.metrics is None:
        found = _scored(held.measured, batches, held.own, stage, run)
    else:
        wanted = _reference(run, stage.clips)
        replicas: dict[str, np.ndarray] = {}
        found = measures.measured(stage, run.recipe, list(who), drawn, held.own, wanted, replicas)
        measures.keep_replicas(held.folder, replicas)
    return {**found, "given_frames": held.kept}


def _write(
    sets: dict[str, _HeldOut],
    scored: dict[str, dict[str, Any]],
    latencies: dict[str, dict[str, Any]],
    who: dict[str, Candidate],
    stage: Evaluate,
    run: Run,
    folder: Path,
) -> Scores:
    """scores.json and the grids."""
    document = {
        **scored.pop(""),
        **scored,
        "nfe": {
            "teacher": evaluations(run.recipe.network.family.teacher.calls(stage.steps), stage.guidance),
            "student": student_sampler(stage, run).steps,
        },
        "latency": latencies,
        "step": plain(measure_step(run, who[_final(stage)].weights, sets[""].own)),
        "labels": {key: candidate.label for key, candidate in who.items()},
        "settings": plain(stage),
    }
    publish_json(folder / "scores.json", document, indent=2)
    for held in sets.values():
        pictures = dict(held.pictures)
        video, control = held.own.pixels(0, min(GRID_CLIPS, stage.clips * stage.draws))
        pictures |= control_rows(run.recipe.control, control)
        grid(pictures | {"ground truth": video}, held.folder / "grid.png")
    return Scores(scores=File.of(folder / "scores.json", run.out), grid=File.of(folder / "grid.png", run.out))


def _scored(
    measured: dict[str, Clips],
    batches: list[tuple[int, int]],
    clips: Source,
    stage: Evaluate,
    run: Run,
) -> dict[str, Any]:
    """The metrics of a stage that names none."""
    codec, real, reference = _real(clips, batches, stage.clips * stage.draws, run)
    reasons: dict[str, str] = {}
    return {
        **score(measured | {"codec": codec}, real, reference, stage.draws),
        "ratio_intervals": {
            other: attempt(
                partial(ratio_interval, measured["student"], measured[other], reference), reasons, other
            )
            for other in measured
            if "student" in measured and other != "student"
        },
        "ratio_reasons": reasons,
    }


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


def _real(clips: Source, batches: list[tuple[int, int]], total: int, run: Run) -> tuple[Clips, Clips, Clips]:
    """The codec's own round trip, the real clips, and the reference clips that follow them."""
    codec, real, reference = [], [], []
    for first, count in batches:
        video = clips.pixels(first, count)[0]
        codec.append(measure(run.recipe, clips.decode(clips.batch(first, count).latents), video))
        real.append(measure(run.recipe, video, video))
    wanted = _reference(run, total)
    for first in range(total, total + wanted, 64):
        video = clips.pixels(first, min(64, total + wanted - first))[0]
        reference.append(Clips(numbers(partial(random_frechet.features, video, device()))))
    return Clips.cat(codec), Clips.cat(real), Clips.cat(reference)


def _reference(run: Run, scored: int) -> int:
    """How many clips to compare ``scored`` others with; what they are is recorded."""
    available = run.details["data"].get("distinct_eval_windows")
    wanted = min(max(REFERENCE_CLIPS[0], 4 * scored), REFERENCE_CLIPS[1])
    run.details["reference_clips"] = wanted
    run.details["reference_is_disjoint"] = available is not None and scored + wanted <= available
    return wanted


def _final(stage: Evaluate) -> str:
    """The candidate that the report is about."""
    return list(stage.students)[-1] if stage.students else "untrained_student"


def _latencies(
    stage: Evaluate, run: Run, who: dict[str, Candidate], source: Shared
) -> dict[str, dict[str, Any]]:
    """Latents only, warm, teacher and final student in turn, at the stage's batch and at batch 1."""
    student = _final(stage)
    networks = {key: load_to_draw(run.recipe, who[key].weights, stage.batch) for key in ("teacher", student)}
    warm = next(key for key in ("teacher_1step_guided", *who) if key in who and key.startswith("teacher_"))
    found: dict[str, dict[str, Any]] = {}
    for size in dict.fromkeys((stage.batch, 1)):
        batch = source.batch(0, size).to(device())
        noise = noise_of(run.recipe.seed, "latency", batch)

        def call(key: str, how: str, batch: Batch = batch, noise: Tensor = noise) -> Tensor:
            return who[how].draw(networks[key], batch, noise, lambda: None)

        times = latency.interleaved(
            {"teacher": partial(call, "teacher", "teacher"), "student": partial(call, student, student)},
            rounds=LATENCY_ROUNDS,
            repeats={"student": 5},
            warm={"teacher": partial(call, "teacher", warm)},
        )
        reasons: dict[str, str] = {}
        found[f"batch_{size}"] = {
            **{key: plain(value) for key, value in times.items()},
            "ratio": ratio(times["teacher"].median, times["student"].median, reasons, "ratio"),
            "reasons": reasons,
        }
    return found
