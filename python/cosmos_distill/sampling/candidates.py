"""Who is compared in the Evaluate stage: networks with a sampler each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill.config import ONE_STEP, Evaluate, FewStep, Guidance, Train
from cosmos_distill.run.checks import teacher_files
from cosmos_distill.run.networks import schedule
from cosmos_distill.run.runner import Run
from cosmos_distill.sampling.samplers import few_steps, frames_of, many_steps

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.models.common.network import ControlledDiT


@dataclass(frozen=True)
class Candidate:
    """Someone who draws clips."""

    draw: Callable[[ControlledDiT, Batch, Tensor, Callable[[], None]], Tensor]
    """draw(network, batch, unit noise, called before each denoise) -> latents"""
    weights: tuple[Path, ...]
    cost: int
    """Denoise calls per batch, for the progress bar."""
    label: str
    fp8: bool = False
    """With the weights of an export in eight bits."""


def student_sampler(stage: Evaluate, run: Run) -> FewStep:
    """The sampler of the student that the report is about: the last one."""
    if not stage.students:
        return ONE_STEP
    trained = run.recipe.stages[list(stage.students.values())[-1]]
    assert isinstance(trained, Train)
    return trained.method.sampler


def candidates(stage: Evaluate, run: Run) -> dict[str, Candidate]:
    """Columns of the report, best known last student first, so that the grid reads from the result down."""
    recipe, levels, many_step = run.recipe, schedule(run.recipe), run.recipe.network.family.teacher
    teacher = (run.student(stage.teacher_from),) if stage.teacher_from else teacher_files(recipe)

    def few(
        weights: tuple[Path, ...], sampler: FewStep, label: str, guidance: Guidance | None = None
    ) -> Candidate:
        def draw(network: ControlledDiT, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
            for _ in range(sampler.steps):
                tick()
            frames = given_frames(stage, batch)
            return few_steps(network, levels, batch, noise, sampler, guidance, frames, recipe.seed)

        return Candidate(draw, weights, sampler.steps, f"{label}, {steps_text(sampler.steps)}")

    def many(steps: int) -> Candidate:
        def draw(network: ControlledDiT, batch: Batch, noise: Tensor, tick: Callable[[], None]) -> Tensor:
            frames = given_frames(stage, batch)
            return many_steps(network, levels, batch, noise, stage.guidance, many_step, steps, frames, tick)

        calls = many_step.calls(steps)
        return Candidate(draw, teacher, calls, f"teacher, {steps_text(calls)}")

    found = {}
    for key, source in reversed(list(stage.students.items())):
        trained = recipe.stages[source]
        assert isinstance(trained, Train)
        found[key] = few((run.student(source),), trained.method.sampler, key.replace("_", " "))
        if key in (stage.fp8 or ()):
            found[f"{key}_fp8"] = replace(found[key], label=f"{found[key].label}, fp8", fp8=True)
    sampler = student_sampler(stage, run)
    found["untrained_student"] = few(teacher, sampler, "untrained")
    if sampler.steps == 1:
        # The student starts as the teacher: the line before under the name by which it is looked for.
        found["teacher_1step"] = few(teacher, sampler, "teacher")
        guided = few(teacher, sampler, "teacher", stage.guidance)
        found["teacher_1step_guided"] = Candidate(guided.draw, teacher, 1, f"{guided.label}, guided")
    else:
        found[f"teacher_{sampler.steps}step"] = many(sampler.steps)
    found["teacher"] = many(stage.steps)
    return found


def given_frames(stage: Evaluate, batch: Batch) -> Tensor | None:
    """How many leading latent frames each clip of the batch is given, integers [B]; None: none at all."""
    clips = [clip_of(stage, batch.first + i) for i in range(len(batch))]
    return frames_of(stage.condition_frames, clips)


def clip_of(stage: Evaluate, sample: int) -> int:
    """Which held-out clip gives the conditions of a sample: where the stage names its metrics, draws are of
    noise alone and go through the same clips."""
    return sample if stage.metrics is None else sample % stage.clips


def steps_text(count: int) -> str:
    """``1 step``, ``4 steps``."""
    return f"{count} step" if count == 1 else f"{count} steps"
