"""Evaluate stage: teacher and students under the same conditions of held-out clips, with the same noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cosmos_distill import __version__
from cosmos_distill.config import Evaluate, Recipe
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.data.control_mix import control_rows
from cosmos_distill.eval import latency
from cosmos_distill.eval.latency import Latency
from cosmos_distill.eval.measure import Numbers
from cosmos_distill.eval.metrics import given_frames
from cosmos_distill.eval.missing import NoScore, attempt, ratio
from cosmos_distill.eval.scores import Clips, ratio_interval, score
from cosmos_distill.files import regular
from cosmos_distill.launch.shared import Shared, drawn
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.manifest import File, Scores, plain
from cosmos_distill.run.networks import backends, collective, computing, device, load_to_draw, open_clips
from cosmos_distill.run.progress import Log, Work, work
from cosmos_distill.run.runner import Run
from cosmos_distill.sampling import candidates as drawn_by
from cosmos_distill.sampling.candidates import Candidate, candidates, student_sampler
from cosmos_distill.sampling.samplers import evaluations, noise_of
from cosmos_distill.stages import measures, scoring
from cosmos_distill.stages.scoring import Scoreboard, Task
from cosmos_distill.stages.step_time import measure as measure_step
from cosmos_distill.storage import disk_errors, publish_json, publish_tensors
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import GRID_CLIPS, grid, shown

if TYPE_CHECKING:
    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.clips import FilmSplit
    from cosmos_distill.data.sources import Source
    from cosmos_distill.models.common.network import ControlledDiT

REFERENCE_CLIPS = (256, 1024)
"""Fewest and most real held-out clips, other than those whose conditions are used, that every set is compared
with; in between four times the clips scored, so that the reference's own error hardly counts."""
LATENCY_ROUNDS = 3


def run(name: str, stage: Evaluate, run: Run, folder: Path) -> Scores:
    """Draw, score and time; drawn batches are kept, so that an interrupted evaluation goes on.

    Clips of another domain, where there are some, are scored alike, by themselves.

    Data-parallel ranks draw a batch each, and then decode and measure one each. All ranks time, since a
    network may be spread over any of them, and rank 0's clock counts.
    """
    torch.manual_seed(run.recipe.seed)
    who = candidates(stage, run)
    log = Log(folder)
    sets = {"": _HeldOut.open(run.recipe, stage, stage.split or "eval", folder)}
    if run.recipe.data.out_of_domain is not None:
        sets[OUT_OF_DOMAIN] = _HeldOut.open(run.recipe, stage, OUT_OF_DOMAIN, folder / OUT_OF_DOMAIN)
    batches = measures.pieces(stage)
    reference = on_rank_zero(lambda: _reference(run, sets[""].own, stage))
    pieces = len(sets) * -(-len(batches) // groups.data_size()) * sum(c.cost for c in who.values())
    with work(run.console, name, pieces, run.stop, "drawn batches are kept, the same command goes on") as bar:
        for held in sets.values():
            for key, candidate in who.items():
                missing = on_rank_zero(partial(_missing, held.folder, key, batches))
                for first, latents in _draw(candidate, missing, held.shared, stage, run.recipe, bar):
                    latents = latents.contiguous()
                    said = {"who": key, "sha256": _digest(latents)}
                    publish_tensors({"latents": latents}, _kept(held.folder, key, first), said)
        for title, held in sets.items():
            _measure(held, who, batches, stage, run, reference, bar)
            for key in who:
                log.line(scored=key, **({"of": title} if title else {}))
    for title, held in sets.items():
        run.details[title or "data"] = held.shared.description()
    latencies = _latencies(stage, run, who, sets[""].shared)

    def finish() -> Scores:
        scored = {title: _scores(held, who, batches, reference, stage) for title, held in sets.items()}
        return _write(sets, scored, latencies, who, batches, stage, run, folder)

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
    network = load_to_draw(recipe, candidate.weights, stage.batch, stage.precision, candidate.fp8)

    def draw(first: int, count: int) -> tuple[int, Tensor]:
        batch = source.batch(drawn_by.clip_of(stage, first), count).to(device())
        batch = replace(batch, first=first)  # which the noise depends on
        noise = noise_of(recipe.seed, "evaluate", batch)
        return first, candidate.draw(network, batch, noise, bar.advance).cpu()

    with computing(stage.precision):
        yield from drawn(missing, draw, bar.together, collective(recipe))


@dataclass(frozen=True)
class _HeldOut:
    """One set of held-out clips, and what rank 0 has found out about them."""

    clips: Source | None
    """None on ranks that read no clips."""
    shared: Shared
    folder: Path
    """Of what is kept of them."""
    board: Scoreboard
    """What is known of them, on rank 0."""

    @classmethod
    def open(cls, recipe: Recipe, stage: Evaluate, split: FilmSplit, folder: Path) -> _HeldOut:
        """The clips of a split."""
        clips = open_clips(recipe, split) if Shared.reads() else None
        made_by = {
            "version": __version__,
            "metrics": stage.metrics,
            "networks": {name: measures.identity(path) for name, path in (stage.networks or {}).items()},
            "control": plain(recipe.control),
            "given": stage.condition_frames,
        }
        return cls(clips, Shared(clips), folder, Scoreboard(folder, made_by))

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


def _measure(
    held: _HeldOut,
    who: Mapping[str, Candidate],
    batches: list[tuple[int, int]],
    stage: Evaluate,
    run: Run,
    reference: list[tuple[int, int]],
    bar: Work,
) -> None:
    """Numbers of all candidates and of the real clips, those that are not kept. All ranks call this."""
    # Drawn as the teacher's one step.
    hidden = {"untrained_student"} if "teacher_1step" in who else set()

    def latents(key: str, first: int) -> tuple[Tensor, str]:
        drawn = load_file(_kept(held.folder, key, first))["latents"]
        return drawn, _digest(drawn)

    def checksum(key: str, first: int) -> str:
        return latents(key, first)[1] if key in who else ""

    def of_batch(task: Task, drawn: Mapping[str, Tensor]) -> dict[str, Numbers]:
        return scoring.of_batch(held.own, stage, run.recipe, hidden, task, drawn)

    def of_reference(task: Task, _: Mapping[str, Tensor]) -> dict[str, Numbers]:
        return scoring.of_reference(held.own, stage, task)

    for pieces, keys, measured in (
        (batches, [scoring.REAL, scoring.CODEC, *who], of_batch),
        (reference, [scoring.REFERENCE], of_reference),
    ):
        tasks = on_rank_zero(partial(held.board.missing, pieces, keys, checksum))
        scoring.measure_missing(held.board, tasks, latents, measured, bar.together)


def _scores(
    held: _HeldOut,
    who: Mapping[str, Candidate],
    batches: list[tuple[int, int]],
    reference: list[tuple[int, int]],
    stage: Evaluate,
) -> dict[str, Any]:
    """What scores.json has of metrics, of one set of clips."""
    if stage.metrics is None:

        def clips(key: str, pieces: list[tuple[int, int]]) -> Clips:
            return scoring.clips_of([held.board.of(key, first) for first, _ in pieces])

        measured = {key: clips(key, batches) for key in (*who, scoring.CODEC)}
        found = _scored(measured, clips(scoring.REAL, batches), clips(scoring.REFERENCE, reference), stage)
    else:
        replicas: dict[str, np.ndarray] = {}
        found = measures.measured(stage, list(who), held.board.of, held.own, reference, replicas)
        measures.keep_replicas(held.folder, replicas)
    kept = {}
    if any(stage.condition_frames):
        for key in who:
            errors = [held.board.of(key, first)[scoring.GIVEN] for first, _ in batches]
            assert not any(isinstance(part, NoScore) for part in errors)
            summary = given_frames.summary(torch.cat([part for part in errors if isinstance(part, Tensor)]))
            if summary["clips"]:
                kept[key] = summary
    return {**found, "given_frames": kept}


def _pictures(
    held: _HeldOut, who: Mapping[str, Candidate], batches: list[tuple[int, int]]
) -> dict[str, Tensor]:
    """What the grid shows of each candidate, by its label."""
    found: dict[str, Tensor] = {}
    for key, candidate in who.items():
        of_key = [held.board.of(key, first) for first, _ in batches if first < GRID_CLIPS]
        parts = [part for of in of_key if isinstance(part := of.get(scoring.PICTURE), Tensor)]
        if parts:
            found[candidate.label] = torch.cat(parts)
    return found


def _write(
    sets: dict[str, _HeldOut],
    scored: dict[str, dict[str, Any]],
    latencies: dict[str, dict[str, Any]],
    who: dict[str, Candidate],
    batches: list[tuple[int, int]],
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
        video, control = held.own.pixels(0, min(GRID_CLIPS, stage.clips * stage.draws))
        real = control_rows(run.recipe.control, control) | {"ground truth": video}
        truth = {label: shown(clips) for label, clips in real.items()}
        grid(_pictures(held, who, batches) | truth, held.folder / "grid.png")
    return Scores(scores=File.of(folder / "scores.json", run.out), grid=File.of(folder / "grid.png", run.out))


def _scored(measured: dict[str, Clips], real: Clips, reference: Clips, stage: Evaluate) -> dict[str, Any]:
    """The metrics of a stage that names none."""
    reasons: dict[str, str] = {}
    return {
        **score(measured, real, reference, stage.draws),
        "ratio_intervals": {
            other: attempt(
                partial(ratio_interval, measured["student"], measured[other], reference), reasons, other
            )
            for other in measured
            if "student" in measured and other not in ("student", scoring.CODEC)
        },
        "ratio_reasons": reasons,
    }


def _reference(run: Run, clips: Source, stage: Evaluate) -> list[tuple[int, int]]:
    """Batches of the clips that those scored are compared with; what they are is recorded."""
    scored = stage.clips * (stage.draws if stage.metrics is None else 1)
    available = clips.description().get("distinct_eval_windows")
    wanted = min(max(REFERENCE_CLIPS[0], 4 * scored), REFERENCE_CLIPS[1])
    run.details["reference_clips"] = wanted
    run.details["reference_is_disjoint"] = available is not None and scored + wanted <= available
    data = run.recipe.data
    return scoring.reference_pieces(scored, wanted, (data.frames, data.height, data.width))


def _final(stage: Evaluate) -> str:
    """The candidate that the report is about."""
    return list(stage.students)[-1] if stage.students else "untrained_student"


def _latencies(
    stage: Evaluate, run: Run, who: dict[str, Candidate], source: Shared
) -> dict[str, dict[str, Any]]:
    """Latents only, warm, of the teacher and of the final student, one network at a time, at the stage's
    batch and at batch 1; with them what they were measured in and on."""
    student = _final(stage)
    warm = next(key for key in ("teacher_1step_guided", *who) if key in who and key.startswith("teacher_"))
    sizes = list(dict.fromkeys((stage.batch, 1)))
    times: dict[str, dict[int, Latency]] = {}
    where = device()
    for role, key, how, repeats in (("teacher", "teacher", warm, 1), ("student", student, student, 5)):
        network = load_to_draw(run.recipe, who[key].weights, stage.batch, stage.precision)
        picked = backends(next(network.parameters()))
        times[role] = {}
        for size in sizes:
            batch = source.batch(0, size).to(where)
            noise = noise_of(run.recipe.seed, "latency", batch)

            def call(
                how: str, batch: Batch = batch, noise: Tensor = noise, network: ControlledDiT = network
            ) -> Tensor:
                return who[how].draw(network, batch, noise, lambda: None)

            with computing(stage.precision):
                found = latency.interleaved(
                    {role: partial(call, key)},
                    rounds=LATENCY_ROUNDS,
                    repeats={role: repeats},
                    warm={role: partial(call, how)},
                )
            times[role][size] = found[role]
            del call
        del network
    named = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    about = {"precision": stage.precision, "device": named, "backends": picked}
    return {f"batch_{size}": _both(times["teacher"][size], times["student"][size]) | about for size in sizes}


def _both(teacher: Latency, student: Latency) -> dict[str, Any]:
    reasons: dict[str, str] = {}
    return {
        "teacher": plain(teacher),
        "student": plain(student),
        "ratio": ratio(teacher.median, student.median, reasons, "ratio"),
        "reasons": reasons,
    }
