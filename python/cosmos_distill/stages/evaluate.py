"""Evaluate stage: teacher and students on the same held-out controls, with the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill.config import Evaluate
from cosmos_distill.eval import blur_ssim, canny_f1, frechet, latency
from cosmos_distill.eval.scores import Clips, score
from cosmos_distill.stages import Run
from cosmos_distill.stages.checks import teacher_files
from cosmos_distill.stages.manifest import File, Scores, plain, write_atomically
from cosmos_distill.stages.networks import device, load, open_clips, preset, schedule
from cosmos_distill.stages.progress import Log, work
from cosmos_distill.stages.sampling import evaluations, many_steps, noise_of, single_step
from cosmos_distill.train.checkpoint import publish_tensors
from cosmos_distill.train.visuals import grid

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.sources import Source
    from cosmos_distill.models.control import ControlledDiT

GRID_CLIPS = 4
REFERENCE_CLIPS = (256, 1024)
"""Fewest and most real held-out clips, other than those whose controls are used, that every set is compared
with; in between four times the clips scored, so that the reference's own error hardly counts."""
LATENCY_ROUNDS = 3


@dataclass(frozen=True)
class Contestant:
    """Someone who draws clips: a network with a sampler."""

    draw: Callable[[ControlledDiT, Batch, Tensor, Callable[[], None]], Tensor]
    weights: tuple[Path, ...]
    cost: int
    """Denoise calls per batch, for the progress bar."""
    label: str


def run(name: str, stage: Evaluate, run: Run, folder: Path) -> Scores:
    """Draw, score and time; drawn batches are kept, so that an interrupted evaluation goes on."""
    torch.manual_seed(run.recipe.seed)
    clips = open_clips(run.recipe, "eval")
    who = contestants(stage, run)
    total = stage.clips * stage.draws
    batches = [(first, min(stage.batch, total - first)) for first in range(0, total, stage.batch)]
    log = Log(folder)
    measured: dict[str, Clips] = {}
    pictures: dict[str, Tensor] = {}
    pieces = len(batches) * sum(c.cost for c in who.values())
    with work(run.console, name, pieces, run.stop, "drawn batches are kept, the same command goes on") as bar:
        for key, contestant in who.items():
            network = load(preset(run.recipe), contestant.weights)
            parts = []
            for first, count in batches:
                latents = _latents(folder, key, contestant, network, clips, first, count, run, bar.advance)
                videos = clips.decode(latents)
                parts.append(measure(videos, clips.pixels(first, count)[0]))
                if first == 0 and key != "untrained_student":  # drawn as the teacher's one step
                    pictures[contestant.label] = videos[:GRID_CLIPS].cpu()
            measured[key] = Clips.cat(parts)
            log.line(scored=key)
    run.details["data"] = clips.description()
    codec, real, reference = _real(clips, batches, total, run)
    document = {
        **score(measured | {"codec": codec}, real, reference, stage.draws),
        "nfe": {"teacher": evaluations(stage.steps, stage.guidance), "student": 1},
        "latency": _latencies(stage, run, who, clips),
        "labels": {key: contestant.label for key, contestant in who.items()},
        "settings": plain(stage),
    }
    write_atomically(folder / "scores.json", json.dumps(document, indent=2) + "\n")
    video, control = clips.pixels(0, min(GRID_CLIPS, total))
    picture = grid(pictures | {"control": control, "ground truth": video}, folder / "grid.png")
    return Scores(scores=File.of(folder / "scores.json", run.out), grid=File.of(picture, run.out))


def contestants(stage: Evaluate, run: Run) -> dict[str, Contestant]:
    """Columns of the report, best known last student first, so that the grid reads from the result down."""
    recipe, levels = run.recipe, schedule(run.recipe)
    teacher = (run.student(stage.teacher_from),) if stage.teacher_from else teacher_files(recipe)

    def one(network: ControlledDiT, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
        tick()
        return single_step(network, levels, batch, noise)

    def one_guided(network: ControlledDiT, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
        tick()
        return single_step(network, levels, batch, noise, stage.guidance)

    def many(network: ControlledDiT, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
        return many_steps(network, levels, batch, noise, stage.guidance, stage.steps, on_evaluation=tick)

    found = {}
    for key, source in reversed(list(stage.students.items())):
        found[key] = Contestant(one, (run.student(source),), 1, f"{key.replace('_', ' ')}, 1 step")
    found["untrained_student"] = Contestant(one, teacher, 1, "untrained, 1 step")
    # The student starts as the teacher: the line before under the name by which it is looked for.
    found["teacher_1step"] = Contestant(one, teacher, 1, "teacher, 1 step")
    found["teacher_1step_guided"] = Contestant(one_guided, teacher, 1, "teacher, 1 step, guided")
    found["teacher"] = Contestant(many, teacher, stage.steps + 1, f"teacher, {stage.steps + 1} steps")
    return found


def measure(video: Tensor, real: Tensor) -> Clips:
    """Numbers per clip of generated clips and the real ones whose controls they were made from."""
    return Clips(frechet.features(video), canny_f1.counts(video, real), blur_ssim.per_clip(video, real))


def _latents(
    folder: Path,
    key: str,
    contestant: Contestant,
    network: ControlledDiT,
    clips: Source,
    first: int,
    count: int,
    run: Run,
    tick: Callable[[], None],
) -> Tensor:
    """Latents of one batch, from disk where an earlier attempt has drawn them."""
    from safetensors.torch import load_file

    path = folder / "samples" / f"{key}-{first:06d}.safetensors"
    if path.is_file():
        return load_file(path)["latents"]
    batch = clips.batch(first, count).to(device())
    latents = contestant.draw(network, batch, noise_of(run.recipe.seed, "evaluate", batch), tick).cpu()
    path.parent.mkdir(exist_ok=True)
    publish_tensors({"latents": latents.contiguous()}, path, {"who": key})
    return latents


def _real(clips: Source, batches: list[tuple[int, int]], total: int, run: Run) -> tuple[Clips, Clips, Clips]:
    """The codec's own round trip, the real clips, and the reference clips that follow them."""
    codec, real, reference = [], [], []
    for first, count in batches:
        video = clips.pixels(first, count)[0]
        codec.append(measure(clips.decode(clips.batch(first, count).latents), video))
        real.append(measure(video, video))
    available = run.details["data"].get("distinct_eval_windows")
    wanted = min(max(REFERENCE_CLIPS[0], 4 * total), REFERENCE_CLIPS[1])
    run.details["reference_clips"] = wanted
    run.details["reference_is_disjoint"] = available is not None and total + wanted <= available
    for first in range(total, total + wanted, 64):
        video = clips.pixels(first, min(64, total + wanted - first))[0]
        reference.append(Clips.features_only(frechet.features(video)))
    return Clips.cat(codec), Clips.cat(real), Clips.cat(reference)


def _latencies(
    stage: Evaluate, run: Run, who: dict[str, Contestant], clips: Source
) -> dict[str, dict[str, Any]]:
    """Latents only, warm, teacher and final student in turn, at the stage's batch and at batch 1."""
    student = list(stage.students)[-1] if stage.students else "untrained_student"
    networks = {key: load(preset(run.recipe), who[key].weights) for key in ("teacher", student)}
    found: dict[str, dict[str, Any]] = {}
    for size in dict.fromkeys((stage.batch, 1)):
        batch = clips.batch(0, size).to(device())
        noise = noise_of(run.recipe.seed, "latency", batch)

        def call(key: str, how: str, batch: Batch = batch, noise: Tensor = noise) -> Tensor:
            return who[how].draw(networks[key], batch, noise, lambda: None)

        times = latency.interleaved(
            {"teacher": partial(call, "teacher", "teacher"), "student": partial(call, student, student)},
            rounds=LATENCY_ROUNDS,
            repeats={"student": 5},
            warm={"teacher": partial(call, "teacher", "teacher_1step_guided")},
        )
        found[f"batch_{size}"] = {
            **{key: plain(value) for key, value in times.items()},
            "ratio": times["teacher"].median / times["student"].median,
        }
    return found
