"""Train stage: a method over networks, on clips or on the teacher's pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill import methods
from cosmos_distill.config import Recipe, Train
from cosmos_distill.data.buckets import Several
from cosmos_distill.data.clip_source import ClipSource
from cosmos_distill.data.pairs import PairSource
from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.launch.shared import Shared
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.checks import needs_teacher, student_files, teacher_files
from cosmos_distill.run.manifest import File, Pairs, Student
from cosmos_distill.run.networks import by_role, device, open_clips, schedule
from cosmos_distill.run.runner import Run
from cosmos_distill.run.sizes import trains_tokenizer
from cosmos_distill.stages import autoencoders, held_out, keep_pairs
from cosmos_distill.stages.grids import sampler_grid
from cosmos_distill.train.loop import Samples, fit

if TYPE_CHECKING:
    from cosmos_distill.data.sources import Source
    from cosmos_distill.methods.base import Method, Networks


def run(name: str, stage: Train, run: Run, folder: Path) -> Student:
    """Train to the stage's last step, or go on from its newest checkpoint."""
    recipe = run.recipe
    source = _source(stage, run) if Shared.reads() else None
    if stage.keep_pairs.asks:
        keep_pairs.leave_out(name, stage, run, folder, source if isinstance(source, PairSource) else None)
    teacher = None if stage.teacher_from is None else (run.student(stage.teacher_from),)
    if stage.student is not None:
        student: tuple[Path, ...] | None = student_files(recipe, name, stage.student)
    elif stage.start_from is not None:
        student = (run.student(stage.start_from),)
    else:
        student = teacher or (teacher_files(recipe) if needs_teacher(stage) else None)
    networks: Networks = (
        autoencoders.networks(recipe, student)
        if trains_tokenizer(recipe)
        else by_role(recipe, student, stage.trainer, teacher)
    )
    method = methods.build(stage.method, networks, schedule(recipe), seed=recipe.seed)
    with _read_ahead(source, recipe, stage) as stream:
        result = fit(
            method,
            stream,
            stage.trainer,
            folder,
            seed=recipe.seed,
            sampler_grid=_watch(method, networks, stage, recipe, folder)
            if stage.trainer.sample_every
            else None,
            stop=run.stop,
        )
    run.details["data"] = Shared(source).description()  # at the end, when every damaged clip has been met
    if seen := on_rank_zero(lambda: _seen(source, stage, result.step)):
        run.details["seen"] = seen
    run.details["skipped_steps"] = result.skipped
    run.details["skipped_steps_by_role"] = result.skipped_by_role
    run.details["left_out_samples_by_role"] = result.left_out
    return on_rank_zero(lambda: Student(weights=File.of(result.student, run.out), steps=result.step))


def _seen(source: Source | None, stage: Train, steps: int) -> dict[str, Any]:
    """Of several sources or shapes, how many samples of each were trained on, and its share of all."""
    if not isinstance(source, Several):
        return {}
    samples = steps * stage.trainer.global_batch
    return {
        name: {"samples": count, "share": count / samples} for name, count in source.seen(samples).items()
    }


def _source(stage: Train, run: Run) -> Source:
    if stage.pairs_from is None:
        return open_clips(run.recipe, "train", stage.trainer.global_batch)
    recipe, output = run.recipe, run.outputs[stage.pairs_from]
    assert isinstance(output, Pairs)
    return PairSource(
        run.out / output.folder,
        recipe.data,
        seed=recipe.seed,
        control=recipe.control,
        schedule=recipe.schedule,
        device=device(),
        pairs=output.count,
    )


@contextmanager
def _read_ahead(source: Source | None, recipe: Recipe, stage: Train) -> Iterator[Samples]:
    """Decode the next batches while the network computes, where a batch means decoding video files."""
    if source is None or not recipe.data.own or not isinstance(source, ClipSource):
        yield Shared(source)
        return
    size = groups.data_size()
    with closing(Prefetch(source, following=within_share(stage.trainer.global_batch // size, size))) as ahead:
        yield Shared(ahead)


def _watch(
    method: Method, networks: Networks, stage: Train, recipe: Recipe, folder: Path
) -> Callable[[int], None]:
    """What is looked at every ``sample_every`` steps: pictures and, while a teacher learns from the film, its
    errors on clips that it does not train on."""
    if trains_tokenizer(recipe):
        return autoencoders.sampler_grid(method.roles["student"], recipe, folder)
    draw = sampler_grid(method, networks, stage, recipe, folder)
    if recipe.data.source != "film" or not stage.method.pretrains:
        return draw
    score = held_out.errors(method.roles["student"], recipe, folder)

    def both(step: int) -> None:
        draw(step)
        score(step)

    return both
