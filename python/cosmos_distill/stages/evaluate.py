"""Evaluate stage: teacher and students under the same conditions of held-out clips, with the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill.config import Evaluate, Recipe
from cosmos_distill.eval import blur_ssim, canny_f1, frechet, given_frames, latency, motion
from cosmos_distill.eval.scores import Clips, ratio_interval, score
from cosmos_distill.stages import Run
from cosmos_distill.stages import contestants as who_draws
from cosmos_distill.stages.checks import pixel_frames
from cosmos_distill.stages.contestants import Contestant, contestants, student_sampler
from cosmos_distill.stages.manifest import File, Scores, plain, write_atomically
from cosmos_distill.stages.networks import device, load, open_clips, preset, schedule
from cosmos_distill.stages.progress import Log, work
from cosmos_distill.stages.sampling import evaluations, noise_of, teacher_calls
from cosmos_distill.stages.step_time import measure as measure_step
from cosmos_distill.train.checkpoint import publish_tensors
from cosmos_distill.train.visuals import grid

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.sources import Source
    from cosmos_distill.models.control import ControlledDiT

GRID_CLIPS = 4
REFERENCE_CLIPS = (256, 1024)
"""Fewest and most real held-out clips, other than those whose conditions are used, that every set is compared
with; in between four times the clips scored, so that the reference's own error hardly counts."""
LATENCY_ROUNDS = 3


def run(name: str, stage: Evaluate, run: Run, folder: Path) -> Scores:
    """Draw, score and time; drawn batches are kept, so that an interrupted evaluation goes on."""
    torch.manual_seed(run.recipe.seed)
    clips = open_clips(run.recipe, "eval")
    who = contestants(stage, run)
    total = stage.clips * stage.draws
    batches = [(first, min(stage.batch, total - first)) for first in range(0, total, stage.batch)]
    log = Log(folder)
    measured: dict[str, Clips] = {}
    kept: dict[str, dict[str, Any]] = {}
    pictures: dict[str, Tensor] = {}
    # Drawn as the teacher's one step.
    hidden = {"untrained_student"} if "teacher_1step" in who else set()
    pieces = len(batches) * sum(c.cost for c in who.values())
    with work(run.console, name, pieces, run.stop, "drawn batches are kept, the same command goes on") as bar:
        for key, contestant in who.items():
            network = load(preset(run.recipe), contestant.weights)
            parts, errors = [], []
            for first, count in batches:
                batch = clips.batch(first, count)
                latents = _latents(folder, key, contestant, network, batch, run, bar.advance)
                videos = clips.decode(latents)
                parts.append(measure(run.recipe, videos, clips.pixels(first, count)[0]))
                if (frames := who_draws.given_frames(stage, batch)) is not None:
                    given = [pixel_frames(run.recipe, n) for n in frames.tolist()]
                    errors.append(given_frames.squared_errors(videos, clips.decode(batch.latents), given))
                if first == 0 and key not in hidden:
                    pictures[contestant.label] = videos[:GRID_CLIPS].cpu()
            measured[key] = Clips.cat(parts)
            if errors:
                kept[key] = given_frames.summary(torch.cat(errors))
            log.line(scored=key)
    run.details["data"] = clips.description()
    codec, real, reference = _real(clips, batches, total, run)
    document = {
        **score(measured | {"codec": codec}, real, reference, stage.draws),
        "nfe": {
            "teacher": evaluations(teacher_calls(schedule(run.recipe), stage.steps), stage.guidance),
            "student": student_sampler(stage, run).steps,
        },
        "given_frames": kept,
        "ratio_intervals": {
            other: ratio_interval(measured["student"], measured[other], reference)
            for other in measured
            if "student" in measured and other != "student"
        },
        "latency": _latencies(stage, run, who, clips),
        "step": plain(measure_step(run, who[_final(stage)].weights, clips)),
        "labels": {key: contestant.label for key, contestant in who.items()},
        "settings": plain(stage),
    }
    write_atomically(folder / "scores.json", json.dumps(document, indent=2) + "\n")
    video, control = clips.pixels(0, min(GRID_CLIPS, total))
    if control is not None:
        pictures["control"] = control
    picture = grid(pictures | {"ground truth": video}, folder / "grid.png")
    return Scores(scores=File.of(folder / "scores.json", run.out), grid=File.of(picture, run.out))


def measure(recipe: Recipe, video: Tensor, real: Tensor) -> Clips:
    """Numbers per clip of generated clips and the real ones whose conditions they were made from.

    With a control, a clip has to match the real one; without, nothing but its motion tells it from a still.
    """
    if recipe.control is None:
        return Clips(frechet.features(video), {"motion": motion.energies(video, real)})
    matched = {"canny_f1": canny_f1.counts(video, real), "blur_ssim": blur_ssim.per_clip(video, real)}
    return Clips(frechet.features(video), matched)


def _latents(
    folder: Path,
    key: str,
    contestant: Contestant,
    network: ControlledDiT,
    batch: Batch,
    run: Run,
    tick: Callable[[], None],
) -> Tensor:
    """Latents of one batch, from disk where an earlier attempt has drawn them."""
    from safetensors.torch import load_file

    path = folder / "samples" / f"{key}-{batch.first:06d}.safetensors"
    if path.is_file():
        return load_file(path)["latents"]
    batch = batch.to(device())
    latents = contestant.draw(network, batch, noise_of(run.recipe.seed, "evaluate", batch), tick).cpu()
    path.parent.mkdir(exist_ok=True)
    publish_tensors({"latents": latents.contiguous()}, path, {"who": key})
    return latents


def _real(clips: Source, batches: list[tuple[int, int]], total: int, run: Run) -> tuple[Clips, Clips, Clips]:
    """The codec's own round trip, the real clips, and the reference clips that follow them."""
    codec, real, reference = [], [], []
    for first, count in batches:
        video = clips.pixels(first, count)[0]
        codec.append(measure(run.recipe, clips.decode(clips.batch(first, count).latents), video))
        real.append(measure(run.recipe, video, video))
    available = run.details["data"].get("distinct_eval_windows")
    wanted = min(max(REFERENCE_CLIPS[0], 4 * total), REFERENCE_CLIPS[1])
    run.details["reference_clips"] = wanted
    run.details["reference_is_disjoint"] = available is not None and total + wanted <= available
    for first in range(total, total + wanted, 64):
        video = clips.pixels(first, min(64, total + wanted - first))[0]
        reference.append(Clips(frechet.features(video)))
    return Clips.cat(codec), Clips.cat(real), Clips.cat(reference)


def _final(stage: Evaluate) -> str:
    """The contestant that the report is about."""
    return list(stage.students)[-1] if stage.students else "untrained_student"


def _latencies(
    stage: Evaluate, run: Run, who: dict[str, Contestant], clips: Source
) -> dict[str, dict[str, Any]]:
    """Latents only, warm, teacher and final student in turn, at the stage's batch and at batch 1."""
    student = _final(stage)
    networks = {key: load(preset(run.recipe), who[key].weights) for key in ("teacher", student)}
    warm = next(key for key in ("teacher_1step_guided", *who) if key in who and key.startswith("teacher_"))
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
            warm={"teacher": partial(call, "teacher", warm)},
        )
        found[f"batch_{size}"] = {
            **{key: plain(value) for key, value in times.items()},
            "ratio": times["teacher"].median / times["student"].median,
        }
    return found
