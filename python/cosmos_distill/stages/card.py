"""The model card of an exported pipeline: how to open it, how it was made, how good it is, what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from cosmos_distill import __version__
from cosmos_distill.config import Evaluate, Export, Train
from cosmos_distill.eval.metrics import find
from cosmos_distill.families import title
from cosmos_distill.run.manifest import Scores
from cosmos_distill.run.runner import Run

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def text(
    run: Run,
    stage: Export,
    said: Mapping[str, Any],
    pipeline: str,
    times: Sequence[float] | None,
    apart: float | None,
    encoder_here: bool,
) -> str:
    """The card, in Markdown.

    Args:
        said: What the export says of itself.
        times: Rectified-flow times of a few-step student; None: it is sampled in many steps.
        apart: Relative difference that the stock scheduler makes to a few-step student.
        encoder_here: The text encoder is in the folder.
    """
    recipe = run.recipe
    source = recipe.stages[stage.student_from]
    assert isinstance(source, Train)
    family = recipe.network.family
    seen = getattr(recipe.network, "clean_condition_times", False)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(
        family=family.title,
        pipeline=pipeline,
        encoder=getattr(family.text, "name", "none"),
        encoder_here=encoder_here,
        control=recipe.control,
        data=recipe.data,
        steps=said["sampler"]["steps"],
        guidance="0.0" if times else f"{said['sampler']['guidance']['scale']:g}",
        told="0.0001" if seen else "-1",  # of given frames; below 0 they have that of their clip
        times=[f"{t:.6g}" for t in times or ()],
        apart=None if apart is None else f"{100 * apart:.2g}",
        network=title(recipe.network),
        precision=said["precision"],
        average=source.trainer.averages,
        teacher=_teacher(run),
        training=[
            f"Stage {name}: {type(each.method).__name__}, {each.trainer.max_steps} steps of "
            f"{each.trainer.global_batch} samples"
            for name, each in recipe.stages.items()
            if isinstance(each, Train)
        ],
        seed=recipe.seed,
        version=__version__,
        recipe_sha256=said["provenance"]["recipe_sha256"],
        given=said["data"]["max_condition_frames"],
        scores=list(_scores(run, stage.student_from)),
    )


def _teacher(run: Run) -> str:
    recipe = run.recipe
    if recipe.teacher is not None:
        return recipe.teacher.name
    first = next(stage for stage in recipe.stages.values() if isinstance(stage, Train))
    return "trained in the same run" if first.method.pretrains else f"the shipped {title(recipe.network)}"


def _scores(run: Run, student: str) -> Iterator[tuple[str, str, str, str]]:
    """Of the student's own columns in the reports of the run, and of the teacher's beside them."""
    for name, stage in run.recipe.stages.items():
        found = run.outputs.get(name)
        if not isinstance(stage, Evaluate) or not isinstance(found, Scores):
            continue
        columns = [key for key, trained in stage.students.items() if trained == student]
        document = json.loads((run.out / found.scores.path).read_text(encoding="utf-8"))["metrics"]
        for column in (*columns, "teacher") if columns else ():
            values = document.get(column, {})
            for metric, value in values.items():
                if isinstance(value, float):
                    ends = values.get("intervals", {}).get(metric)
                    interval = "[{:.4g}, {:.4g}]".format(*ends[:2]) if ends else ""
                    yield column.replace("_", " "), _named(metric), f"{value:.4g}", interval


def _named(metric: str) -> str:
    try:
        return find(metric).title
    except (KeyError, ValueError):
        return metric
